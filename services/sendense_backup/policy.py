"""What a policy is, and its rules as pure functions: schedule, window, which VMs, full or increment. No clock inside.

A schedule is a cron expression in a time zone. At the turn to summer time a time that does not exist runs right after
the gap, at the turn to winter time a time that exists twice runs once (both as Debian's cron does). A window is the
time of day, in the same zone, in which jobs may start; outside of it they wait in line until it opens.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from sendense_backup.errors import BadPolicy
from sendense_backup.model import FULL, INCREMENTAL, KnownVm, RetentionRules

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_NEVER = timedelta(days=366 * 5)
"""A schedule that is not due within this time (29 February is) never is."""


@dataclass(frozen=True, slots=True)
class Window:
    """When jobs may start: from `start` to `end` (the next day when it is not later), on the days that it starts."""

    start: str
    end: str
    days: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises BadPolicy when it is malformed or never opens."""
        for name, value in (("start", self.start), ("end", self.end)):
            if not _TIME.fullmatch(value):
                raise BadPolicy(f"window.{name}", f"'{value}' is no time of day", "Write it as 22:00.")
        unknown = [day for day in self.days if day not in DAYS]
        if unknown:
            raise BadPolicy("window.days", f"'{unknown[0]}' is no day", f"Use {', '.join(DAYS)}.")
        if self.start == self.end:
            raise BadPolicy(
                "window",
                f"a window from {self.start} to {self.end} never opens",
                "Leave the window out to allow any time, or let it end later than it starts.",
                reason="WINDOW_NEVER_OPENS",
            )

    def opens_at(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """Returns `moment` when the window is open then, else when it opens next."""
        local = moment.astimezone(zone)
        candidates: list[datetime] = []
        for offset in range(-1, 9):
            day = local.date() + timedelta(days=offset)
            if self.days and DAYS[day.weekday()] not in self.days:
                continue
            start, end = _clock(self.start), _clock(self.end)
            opens = datetime.combine(day, start, zone)
            closes = datetime.combine(day if end > start else day + timedelta(days=1), end, zone)
            # Compared as moments: at the turns of the clock local times are not in order.
            if opens.astimezone(UTC) <= moment.astimezone(UTC) < closes.astimezone(UTC):
                return moment
            if opens.astimezone(UTC) > moment.astimezone(UTC):
                candidates.append(opens.astimezone(UTC))
        return min(candidates)


@dataclass(frozen=True, slots=True)
class Selector:
    """One way to name VMs; exactly one of them is set.

    Attributes:
        name: Exactly this name.
        pattern: Shell pattern over names, such as `web-*`.
        folder: Inventory folder, such as `/DC/vm/Production`; its folders below count too.
        tag: A tag or custom attribute of the VM, as the agent reports it.
    """

    name: str = ""
    pattern: str = ""
    folder: str = ""
    tag: str = ""

    def selects(self, known: KnownVm) -> bool:
        """Tells whether a VM is meant."""
        vm = known.vm
        if self.name:
            return vm.name == self.name
        if self.pattern:
            return fnmatch.fnmatchcase(vm.name, self.pattern)
        if self.folder:
            return vm.inventory_path.startswith(self.folder.rstrip("/") + "/")
        return self.tag in vm.tags

    def check(self, where: str) -> None:
        """Raises BadPolicy unless exactly one way is set."""
        if sum(bool(each) for each in (self.name, self.pattern, self.folder, self.tag)) != 1:
            raise BadPolicy(where, "a selector needs exactly one of name, pattern, folder and tag", "Set one of them.")


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """Everything in a policy but its name and schedule.

    Attributes:
        include: VMs that it backs up.
        exclude: VMs that it leaves out although they are included.
        full_every_days: A full when the last one is so old; 0 for the first only.
        synthetic_full: Makes that full by consolidation, without reading the VM.
        retention: What stays after a run.
        repository: Name of the repository; empty for the default one.
        window: When its jobs may start; None for any time.
        retries: How often a failed job is started again.
        retry_pause_seconds: How long after its failure.
        quiesce: Ask the guests to quiesce their file systems.
        priority: Who goes first in line; the larger, the earlier.
        verify_every_days: Read the newest point of a VM back when it was not for so long; 0 for never.
    """

    include: tuple[Selector, ...]
    exclude: tuple[Selector, ...] = ()
    full_every_days: int = 0
    synthetic_full: bool = False
    retention: RetentionRules = field(default_factory=RetentionRules)
    repository: str = ""
    window: Window | None = None
    retries: int = 0
    retry_pause_seconds: int = 300
    quiesce: bool = False
    priority: int = 0
    verify_every_days: int = 0
    time_zone: str = "UTC"

    def check(self) -> None:
        """Raises BadPolicy when something in it is wrong or can never work."""
        if not self.include:
            raise BadPolicy(
                "include",
                "the policy names no VMs",
                "Name VMs by name, pattern, folder or tag.",
                reason="POLICY_WITHOUT_VMS",
            )
        for number, each in enumerate(self.include):
            each.check(f"include[{number}]")
        for number, each in enumerate(self.exclude):
            each.check(f"exclude[{number}]")
        if self.synthetic_full and not self.full_every_days:
            raise BadPolicy(
                "full_every_days", "a synthetic full needs to know how often", "Set full_every_days, such as 7."
            )
        zone_of(self.time_zone)
        if self.window is not None:
            self.window.check()

    def select(self, known: Iterable[KnownVm]) -> list[KnownVm]:
        """Returns the VMs that it backs up; templates are never meant."""
        return [
            each
            for each in known
            if not each.vm.template
            and any(selector.selects(each) for selector in self.include)
            and not any(selector.selects(each) for selector in self.exclude)
        ]

    def type_of_next(self, last_full_at: datetime | None, moment: datetime) -> tuple[str, str]:
        """Returns `full` or `incremental` for a VM's next backup, and why.

        Args:
            last_full_at: When the VM's newest full in the repository was made (`VmHistory.full_at`); None without any
                restore point.
            moment: When the next backup is made.
        """
        if last_full_at is None:
            return FULL, "first backup"
        if self.full_is_due(last_full_at, moment) and not self.synthetic_full:
            return FULL, f"the last full is of {last_full_at:%Y-%m-%d}, every {self.full_every_days} days one is made"
        return INCREMENTAL, f"builds on the full of {last_full_at:%Y-%m-%d}"

    def full_is_due(self, last_full_at: datetime, moment: datetime) -> bool:
        """Tells whether a new full must be made, by reading or by consolidation."""
        # By date: a run that began some minutes earlier than the one N days before must not put the full off.
        zone = zone_of(self.time_zone)
        days = (moment.astimezone(zone).date() - last_full_at.astimezone(zone).date()).days
        return bool(self.full_every_days) and days >= self.full_every_days

    def to_json(self) -> str:
        """Returns the rules as the catalogue keeps them."""
        return json.dumps(asdict(self), sort_keys=True)


@lru_cache(maxsize=2048)
def rules_from_json(text: str) -> PolicyRules:
    """Returns rules as the catalogue keeps them."""
    values = json.loads(text)
    window = values.pop("window")
    return PolicyRules(
        include=tuple(Selector(**each) for each in values.pop("include")),
        exclude=tuple(Selector(**each) for each in values.pop("exclude")),
        retention=RetentionRules(**values.pop("retention")),
        window=Window(window["start"], window["end"], tuple(window["days"])) if window else None,
        **values,
    )


def opens_at(rules_json: str, moment: datetime) -> datetime:
    """Returns `moment` when a policy's jobs may start then, else when they may."""
    rules = rules_from_json(rules_json)
    return moment if rules.window is None else rules.window.opens_at(moment, zone_of(rules.time_zone))


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy: a row of `policies`."""

    policy_id: str
    name: str
    enabled: bool
    cron: str
    rules: PolicyRules
    next_run_at: datetime | None
    created_at: datetime
    updated_at: datetime


def zone_of(name: str) -> ZoneInfo:
    """Returns a time zone.

    Raises:
        BadPolicy: There is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadPolicy(
            "time_zone",
            f"there is no time zone '{name}'",
            "Use an IANA name such as Europe/Berlin.",
            reason="UNKNOWN_ZONE",
        ) from error


def next_run(cron: str, zone_name: str, after: datetime) -> datetime:
    """Returns when a schedule is due next, in UTC.

    Args:
        cron: Five fields: minute, hour, day of month, month, day of week.
        zone_name: IANA name of the zone that they are meant in.
        after: The moment after which it is looked for.

    Raises:
        BadPolicy: The expression or the zone is not right, or the schedule is never due.
    """
    zone = zone_of(zone_name)
    help_text = "Five fields: minute hour day-of-month month day-of-week, such as `30 1 * * mon-fri`."
    if len(cron.split()) != 5:  # cronsim knows seconds as a sixth one; a backup's schedule has none
        raise BadPolicy("cron", f"'{cron}' is no cron expression", help_text, reason="BAD_CRON")
    try:
        due = next(CronSim(cron, after.astimezone(zone)))
    except (CronSimError, StopIteration) as error:
        raise BadPolicy(
            "cron", f"'{cron}' is no cron expression, or never due", help_text, reason="BAD_CRON"
        ) from error
    if due - after > _NEVER:
        raise BadPolicy("cron", f"'{cron}' is never due", help_text, reason="BAD_CRON")
    return due.astimezone(UTC)


def runs_between(cron: str, zone_name: str, after: datetime, until: datetime, most: int = 1000) -> list[datetime]:
    """Returns the moments at which a schedule is due, after one moment and until another, at most `most`."""
    found: list[datetime] = []
    moment = after
    while len(found) < most:
        moment = next_run(cron, zone_name, moment)
        if moment > until:
            break
        found.append(moment)
    return found


def _clock(text: str) -> time:
    return time.fromisoformat(text)
