"""The rules of policies: schedules through the turns of the clock, windows, selectors, full or increment, bad input."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from sendense_backup.errors import BadPolicy
from sendense_backup.model import KnownVm, RetentionRules, Vm, VmRef
from sendense_backup.policy import PolicyRules, Selector, Window, next_run, rules_from_json, runs_between

BERLIN = ZoneInfo("Europe/Berlin")
ANY = (Selector(pattern="*"),)


def at(text: str, zone: ZoneInfo | None = None) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC)


def known(name: str, path: str = "", tags: tuple[str, ...] = (), template: bool = False) -> KnownVm:
    vm = Vm(VmRef("vc", name), name, path or f"/DC/vm/{name}", "poweredOn", template=template, tags=tags)
    return KnownVm("agent-1", vm)


def test_a_schedule_is_meant_in_its_zone() -> None:
    assert next_run("30 1 * * *", "Europe/Berlin", at("2026-01-10T12:00:00")) == at("2026-01-11T00:30:00")
    assert next_run("30 1 * * *", "UTC", at("2026-01-10T12:00:00")) == at("2026-01-11T01:30:00")


def test_a_time_that_the_clock_jumps_over_runs_right_after_the_jump() -> None:
    runs = runs_between("30 2 * * *", "Europe/Berlin", at("2026-03-28T12:00:00"), at("2026-03-30T12:00:00"))
    assert [each.astimezone(BERLIN).strftime("%d %H:%M") for each in runs] == ["29 03:00", "30 02:30"]


def test_a_time_that_comes_twice_runs_once() -> None:
    runs = runs_between("30 2 * * *", "Europe/Berlin", at("2026-10-24T12:00:00"), at("2026-10-26T12:00:00"))
    assert [each.astimezone(BERLIN).strftime("%d %H:%M") for each in runs] == ["25 02:30", "26 02:30"]


def test_an_hourly_schedule_misses_no_hour_at_the_turns_of_the_clock() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        start = at(f"{day}T00:00:00") - timedelta(hours=3)
        runs = runs_between("0 * * * *", "Europe/Berlin", start, start + timedelta(hours=12))
        assert len(runs) == 12
        assert {b - a for a, b in itertools.pairwise(runs)} == {timedelta(hours=1)}


@pytest.mark.parametrize("cron", ["", "daily", "61 * * * *", "* * * *", "* * * * * *", "0 0 30 2 *", "0 0 * * funday"])
def test_a_bad_cron_is_refused(cron: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        next_run(cron, "UTC", at("2026-01-01T00:00:00"))
    assert (caught.value.reason, caught.value.metadata["field"]) == ("BAD_CRON", "cron")
    assert "Five fields" in caught.value.help


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "", "/etc/localtime"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        next_run("0 0 * * *", zone, at("2026-01-01T00:00:00"))
    assert caught.value.reason == "UNKNOWN_ZONE"


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (Window("22:00", "22:00"), "WINDOW_NEVER_OPENS"),
        (Window("25:00", "06:00"), "INVALID_FIELD"),
        (Window("22:00", "6"), "INVALID_FIELD"),
        (Window("22:00", "06:00", ("someday",)), "INVALID_FIELD"),
    ],
)
def test_a_window_that_never_opens_or_is_none_is_refused(window: Window, reason: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        PolicyRules(include=ANY, window=window).check()
    assert caught.value.reason == reason


def test_a_policy_without_vms_is_refused() -> None:
    with pytest.raises(BadPolicy) as caught:
        PolicyRules(include=()).check()
    assert caught.value.reason == "POLICY_WITHOUT_VMS"
    with pytest.raises(BadPolicy, match="exactly one"):
        PolicyRules(include=(Selector(name="a", pattern="b"),)).check()
    with pytest.raises(BadPolicy, match="exactly one"):
        PolicyRules(include=ANY, exclude=(Selector(),)).check()


def test_a_window_over_midnight_is_open_on_both_sides_and_on_its_days_only() -> None:
    night = Window("22:00", "06:00", ("fri",))
    friday = at("2026-11-27T23:00:00", BERLIN)
    saturday = at("2026-11-28T05:59:00", BERLIN)
    assert night.opens_at(friday, BERLIN) == friday
    assert night.opens_at(saturday, BERLIN) == saturday
    later = night.opens_at(at("2026-11-28T06:00:00", BERLIN), BERLIN)
    assert later.astimezone(BERLIN) == at("2026-12-04T22:00:00", BERLIN)


def test_a_window_opens_every_day_of_the_year_whatever_the_clock_does() -> None:
    window = Window("02:15", "02:45")
    moment = at("2026-01-01T00:00:00")
    for _ in range(365):
        opens = window.opens_at(moment, BERLIN)
        assert moment <= opens <= moment + timedelta(hours=50)
        moment += timedelta(days=1)


def test_selectors_choose_by_name_pattern_folder_and_tag_and_leave_out() -> None:
    vms = [
        known("web-1", tags=("gold",)),
        known("web-2"),
        known("db", "/DC/vm/Production/SQL/db"),
        known("template", "/DC/vm/Production/template", template=True),
        known("test", "/DC/vm/Production-old/test"),
    ]

    def chosen(*include: Selector, exclude: tuple[Selector, ...] = ()) -> list[str]:
        return [each.vm.name for each in PolicyRules(include=include, exclude=exclude).select(vms)]

    assert chosen(Selector(name="db")) == ["db"]
    assert chosen(Selector(pattern="web-*"), Selector(tag="gold")) == ["web-1", "web-2"]
    assert chosen(Selector(folder="/DC/vm/Production/")) == ["db"]
    assert chosen(Selector(folder="/DC/vm/Production")) == ["db"]
    assert chosen(Selector(tag="gold")) == ["web-1"]
    assert chosen(Selector(pattern="*"), exclude=(Selector(pattern="web-?"),)) == ["db", "test"]


def test_a_full_is_made_every_so_many_days_by_date_and_not_where_it_is_synthetic() -> None:
    weekly = PolicyRules(include=ANY, full_every_days=7, time_zone="Europe/Berlin")
    monday = at("2026-11-02T01:30:12")
    assert weekly.type_of_next(None, monday)[0] == "full"
    assert weekly.type_of_next(monday, monday + timedelta(days=6))[0] == "incremental"
    assert weekly.type_of_next(monday, monday + timedelta(days=7, seconds=-10))[0] == "full"
    synthetic = PolicyRules(include=ANY, full_every_days=7, synthetic_full=True)
    assert synthetic.type_of_next(monday, monday + timedelta(days=8))[0] == "incremental"
    assert synthetic.full_is_due(monday, monday + timedelta(days=8))


def test_rules_survive_the_catalogue() -> None:
    rules = PolicyRules(
        include=(Selector(name="a"), Selector(tag="t")),
        exclude=(Selector(pattern="x*"),),
        window=Window("22:00", "06:00", ("mon",)),
        retention=RetentionRules(keep_last=3, time_zone="UTC"),
        priority=-2,
    )
    assert rules_from_json(rules.to_json()) == rules
