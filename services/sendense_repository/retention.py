"""Which restore points of a VM rules keep, and by which rule. Pure: the same facts give the same answer.

What always holds: points are ordered by sequence, never by clock. A point whose date is in the future, or out of order
with the others, is never counted as one of the last so many and never stands for an hour, day, week, month or year: so
no made-up point can push a real one out. A corrupt point is not counted either. The last good point of a VM is never
removed, nor the last one that was verified, nor any that is locked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from sendense_repository.integrity import IntegrityState

FUTURE = timedelta(minutes=5)
"""A date that is further ahead than this is no clock's small error."""

MAX_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What to keep; see the protos' `RetentionRules`. With no number set everything is kept."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    min_age_seconds: int = 0
    time_zone: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no rule says how many to keep."""
        return not any(
            (self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly)
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A restore point as retention sees it.

    Attributes:
        backup_id: The point.
        sequence: Its place in the order of the VM's points.
        committed_at: When it was committed, as its file says.
        state: What is known of its soundness.
        locked_until: Until when nobody can delete it; None when it is not locked.
    """

    backup_id: str
    sequence: int
    committed_at: datetime
    state: IntegrityState = "unverified"
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a point: it is kept by `rules`, or goes when there is none."""

    point: Candidate
    rules: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """Whether it stays."""
        return bool(self.rules)


def judge(points: Sequence[Candidate], rules: Rules, now: datetime) -> list[Verdict]:
    """Returns the verdict on each point of one VM, newest first.

    Args:
        points: All committed points of the VM in one repository, in any order.
        rules: What to keep.
        now: The time to count ages with.
    """
    ordered = sorted(points, key=lambda point: -point.sequence)
    reasons: dict[str, list[str]] = {point.backup_id: [] for point in ordered}
    for point, reason in _kept(ordered, rules, now):
        if reason not in reasons[point.backup_id]:
            reasons[point.backup_id].append(reason)
    return [Verdict(point, tuple(reasons[point.backup_id])) for point in ordered]


def _kept(ordered: Sequence[Candidate], rules: Rules, now: datetime) -> Iterator[tuple[Candidate, str]]:
    """Yields points that stay, each with a reason; `ordered` is newest first."""
    if rules.is_empty:
        for point in ordered:
            yield point, "no rule is set"
    yield from _protected(ordered, rules, now)
    dated = _in_order(ordered, now)
    counted = [point for point in dated if point.state != "corrupt"]
    last = counted[: rules.keep_last]
    if last:
        # What is newer than the oldest of them stays too, though it was not counted: its date says nothing.
        for point in ordered:
            if point.sequence >= last[-1].sequence:
                yield point, "last"
    yield from _by_calendar(counted, rules)


def _protected(ordered: Sequence[Candidate], rules: Rules, now: datetime) -> Iterator[tuple[Candidate, str]]:
    for reason, states in (("last verified", {"verified"}), ("last good", {"verified", "unverified"})):
        good = next((point for point in ordered if point.state in states and point.committed_at <= now + FUTURE), None)
        if good is not None:
            yield good, reason
    if ordered and all(point.state == "corrupt" or point.committed_at > now + FUTURE for point in ordered):
        yield ordered[0], "last of all"
    for point in ordered:
        if point.committed_at > now + FUTURE:
            yield point, "date in the future"
        elif rules.min_age_seconds and now - point.committed_at < timedelta(seconds=rules.min_age_seconds):
            yield point, f"younger than {rules.min_age_seconds} s"
        if point.locked_until is not None and point.locked_until > now:
            yield point, f"locked until {point.locked_until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _in_order(ordered: Sequence[Candidate], now: datetime) -> list[Candidate]:
    """Returns the most points whose dates grow with their sequence and are not in the future, newest first."""
    oldest_first = [point for point in reversed(ordered) if point.committed_at <= now + FUTURE]
    # The longest run with dates that do not go back, by patience sorting: `tails[n]` ends the best run of n + 1.
    tails: list[int] = []
    before: list[int | None] = []
    for place, point in enumerate(oldest_first):
        at = bisect_right(tails, point.committed_at, key=lambda tail: oldest_first[tail].committed_at)
        before.append(tails[at - 1] if at else None)
        tails[at : at + 1] = [place]
    run: list[Candidate] = []
    follow = tails[-1] if tails else None
    while follow is not None:
        run.append(oldest_first[follow])
        follow = before[follow]
    return run


def _by_calendar(counted: Sequence[Candidate], rules: Rules) -> Iterator[tuple[Candidate, str]]:
    zone = ZoneInfo(rules.time_zone) if rules.time_zone else UTC
    periods: tuple[tuple[str, int, Callable[[datetime], str]], ...] = (
        ("hourly", rules.keep_hourly, _hour),
        ("daily", rules.keep_daily, lambda moment: f"{moment:%Y-%m-%d}"),
        ("weekly", rules.keep_weekly, lambda moment: f"{moment:%G-W%V}"),
        ("monthly", rules.keep_monthly, lambda moment: f"{moment:%Y-%m}"),
        ("yearly", rules.keep_yearly, lambda moment: f"{moment:%Y}"),
    )
    for name, count, key in periods:
        seen: set[str] = set()
        for point in counted:
            if len(seen) >= count:
                break
            period = key(point.committed_at.astimezone(zone))
            if period not in seen:
                seen.add(period)
                yield point, f"{name} {period}"


def _hour(moment: datetime) -> str:
    """Names an hour; the two that a change of daylight saving time gives one name differ in their offset."""
    return f"{moment:%Y-%m-%d %H:00 %z}"
