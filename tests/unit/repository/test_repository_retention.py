"""Which restore points rules keep: by sequence, never by clock, and never losing the last good one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense_repository.options import RepositoryOptions
from sendense_repository.retention import Candidate, Rules, judge

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def series(count: int, step: timedelta, *, end: datetime = NOW) -> list[Candidate]:
    """Points at a steady rate, the newest at `end`."""
    return [Candidate(f"p{number}", number, end - step * (count - number)) for number in range(1, count + 1)]


def kept(points: list[Candidate], rules: Rules, now: datetime = NOW) -> list[str]:
    return [verdict.point.backup_id for verdict in judge(points, rules, now) if verdict.keep]


def reasons(points: list[Candidate], rules: Rules, now: datetime = NOW) -> dict[str, tuple[str, ...]]:
    return {verdict.point.backup_id: verdict.rules for verdict in judge(points, rules, now)}


def test_without_a_rule_everything_stays() -> None:
    points = series(50, DAY)
    assert len(kept(points, Rules())) == 50
    assert len(kept(points, Rules(min_age_seconds=1))) == 50


def test_the_last_so_many_stay() -> None:
    assert kept(series(10, HOUR), Rules(keep_last=3)) == ["p10", "p9", "p8"]


def test_grandfather_father_son_keeps_the_newest_point_of_each_period_that_has_one() -> None:
    points = series(400 * 2, DAY / 2, end=datetime(2026, 12, 31, 23, 0, tzinfo=UTC))
    rules = Rules(keep_daily=7, keep_weekly=4, keep_monthly=12, keep_yearly=2)
    found = reasons(points, rules, datetime(2027, 1, 1, tzinfo=UTC))
    by_rule: dict[str, list[str]] = {}
    for names in found.values():
        for name in names:
            by_rule.setdefault(name.split()[0], []).append(name)
    assert len(by_rule["daily"]) == 7
    assert len(by_rule["weekly"]) == 4
    assert len(by_rule["monthly"]) == 12
    assert sorted(by_rule["yearly"]) == ["yearly 2025", "yearly 2026"]
    assert all(len(set(names)) == len(names) for names in by_rule.values())
    assert "daily 2026-12-31" in found["p800"]


def test_days_are_counted_in_the_zone_that_was_asked_for() -> None:
    points = [
        Candidate("evening", 1, datetime(2026, 11, 22, 22, 30, tzinfo=UTC)),
        Candidate("night", 2, datetime(2026, 11, 22, 23, 30, tzinfo=UTC)),
    ]
    assert kept(points, Rules(keep_daily=2)) == ["night"]
    assert kept(points, Rules(keep_daily=2, time_zone="Europe/Berlin")) == ["night", "evening"]


def test_the_two_hours_of_one_name_when_summer_time_ends_are_two_hours() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # 02:30 +0200, then 02:30 +0100
    points = [Candidate("summer", 1, first), Candidate("winter", 2, first + HOUR)]
    assert kept(points, Rules(keep_hourly=2, time_zone="Europe/Berlin")) == ["winter", "summer"]


def test_young_and_locked_points_stay_whatever_the_rules_say() -> None:
    points = series(10, HOUR)
    points[2] = replace(points[2], locked_until=NOW + timedelta(seconds=1))
    found = reasons(points, Rules(keep_last=1, min_age_seconds=2 * 3600 + 1800))
    assert {name for name, why in found.items() if why} == {"p10", "p9", "p8", "p3"}
    assert found["p3"] == ("locked until 2026-11-23 12:00:01 UTC",)


def test_a_corrupt_point_neither_counts_nor_stands_for_a_day() -> None:
    points = series(5, DAY)
    points[-1] = replace(points[-1], state="corrupt")
    points[0] = replace(points[0], state="verified")
    found = reasons(points, Rules(keep_last=2))
    assert "last good" in found["p4"]
    assert "last verified" in found["p1"]
    # The corrupt one is newer than the last two good ones, and stays with them: a person decides about it.
    assert [name for name, why in found.items() if why] == ["p5", "p4", "p3", "p1"]


def test_row_20_points_with_future_dates_evict_no_real_one() -> None:
    real = series(10, DAY)
    fakes = [Candidate(f"fake{number}", 10 + number, NOW + 365 * DAY * number) for number in range(1, 30)]
    rules = Rules(keep_last=5, keep_daily=7, keep_yearly=3)
    assert set(kept(real, rules)) <= set(kept([*real, *fakes], rules))
    assert set(kept([*real, *fakes], rules, NOW)) >= {fake.backup_id for fake in fakes}


def test_row_20_points_with_old_dates_evict_no_real_one() -> None:
    real = series(10, DAY)
    fakes = [Candidate(f"fake{number}", 10 + number, NOW - 3650 * DAY) for number in range(1, 6)]
    rules = Rules(keep_last=5, keep_daily=7)
    assert set(kept(real, rules)) <= set(kept([*real, *fakes], rules))


def test_row_24_a_clock_that_was_a_day_off_for_one_backup_changes_nothing_for_the_others() -> None:
    points = series(20, DAY)
    odd = [*points]
    odd[12] = replace(odd[12], committed_at=odd[12].committed_at - 3 * DAY)
    rules = Rules(keep_daily=20)
    assert set(kept(points, rules)) - {odd[12].backup_id} <= set(kept(odd, rules))


dates = st.integers(-2000, 400).map(lambda hours: NOW + HOUR * hours)
states = st.sampled_from(["unverified", "verified", "corrupt"])
numbers = st.integers(0, 5)
some_rules = st.builds(
    Rules, numbers, numbers, numbers, numbers, numbers, numbers, min_age_seconds=st.integers(0, 10**6)
)


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(0, 25))
    return [
        Candidate(
            f"p{number}",
            number,
            draw(dates),
            draw(states),
            draw(st.one_of(st.none(), dates)),
        )
        for number in range(count)
    ]


@given(histories(), some_rules)
@settings(max_examples=300, deadline=None)
def test_what_must_never_go_never_goes(points: list[Candidate], rules: Rules) -> None:
    staying = set(kept(points, rules))
    assert not points or staying
    for wanted in ({"verified"}, {"verified", "unverified"}):
        good = [point for point in points if point.state in wanted and point.committed_at <= NOW]
        if good:
            assert max(good, key=lambda point: point.sequence).backup_id in staying
    for point in points:
        if point.locked_until is not None and point.locked_until > NOW:
            assert point.backup_id in staying
        if rules.min_age_seconds and NOW - point.committed_at < timedelta(seconds=rules.min_age_seconds):
            assert point.backup_id in staying


@given(histories(), some_rules)
@settings(max_examples=200, deadline=None)
def test_the_same_facts_in_any_order_give_the_same_answer(points: list[Candidate], rules: Rules) -> None:
    assert judge(points, rules, NOW) == judge(points[::-1], rules, NOW)


@given(histories(), some_rules)
@settings(max_examples=200, deadline=None)
def test_applying_a_plan_twice_removes_nothing_more(points: list[Candidate], rules: Rules) -> None:
    staying = [verdict.point for verdict in judge(points, rules, NOW) if verdict.keep]
    in_order = all(one.committed_at <= other.committed_at <= NOW for one, other in itertools.pairwise(points))
    if in_order:
        assert set(kept(staying, rules)) == {point.backup_id for point in staying}


@given(histories(), some_rules, some_rules)
@settings(max_examples=200, deadline=None)
def test_more_rules_never_keep_less(points: list[Candidate], rules: Rules, more: Rules) -> None:
    if rules.is_empty:
        return
    larger = Rules(
        **{
            name: max(getattr(rules, name), getattr(more, name))
            for name in ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")
        },
        min_age_seconds=max(rules.min_age_seconds, more.min_age_seconds),
    )
    assert set(kept(points, rules)) <= set(kept(points, larger))


def test_row_19_a_lock_is_never_shortened_for_points_that_exist() -> None:
    options = RepositoryOptions().with_lock(7 * 86_400, NOW - 10 * DAY)
    assert options.locked_until(NOW) == NOW + 7 * DAY
    lowered = options.with_lock(0, NOW)
    assert lowered.lock_seconds == 0
    assert lowered.locked_until(NOW - DAY) == NOW + 6 * DAY
    assert lowered.locked_until(NOW + DAY) is None
    longer = lowered.with_lock(30 * 86_400, NOW + DAY)
    assert longer.locked_until(NOW - DAY) == NOW + 29 * DAY
    assert RepositoryOptions.of(longer.as_json()) == longer


def test_a_lock_set_while_the_clock_was_behind_keeps_its_place_in_the_order() -> None:
    options = RepositoryOptions().with_lock(60, NOW).with_lock(120, NOW - DAY)
    assert [period.since for period in options.locks] == [NOW, NOW]
    with pytest.raises(KeyError):
        RepositoryOptions.of({"locks": [{"since": NOW.isoformat()}]})
