"""A repository's own settings: its reserve, how long restore points are locked, and whether files are made immutable.

Locks grow, they never shrink: each change is kept with its time, and a restore point has the longest lock that was in
force at any moment of its life. So lowering the setting, or a stolen administrator's token, frees nothing that exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class LockPeriod:
    """From `since` on, restore points are locked for `seconds` after their commit."""

    since: datetime
    seconds: int


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """Settings of one repository.

    Attributes:
        reserve_bytes: Room that is never used; None takes the service's setting.
        locks: The settings of the lock in the order of their times; none was ever set when empty.
        immutable_files: Whether committed files get the immutable attribute.
    """

    reserve_bytes: int | None = None
    locks: tuple[LockPeriod, ...] = ()
    immutable_files: bool = False

    @property
    def lock_seconds(self) -> int:
        """How long a new restore point is locked."""
        return self.locks[-1].seconds if self.locks else 0

    def with_lock(self, seconds: int, now: datetime) -> RepositoryOptions:
        """Returns the options with another lock from `now` on."""
        if seconds == self.lock_seconds:
            return self
        since = max([now, *(period.since for period in self.locks)])
        return replace(self, locks=(*self.locks, LockPeriod(since, seconds)))

    def locked_until(self, committed_at: datetime) -> datetime | None:
        """Returns until when a restore point is locked; None when it never was."""
        longest = 0
        for number, period in enumerate(self.locks):
            ended = self.locks[number + 1].since if number + 1 < len(self.locks) else None
            if ended is None or ended > committed_at:
                longest = max(longest, period.seconds)
        return committed_at + timedelta(seconds=longest) if longest else None

    def as_json(self) -> dict[str, Any]:
        """Returns them for the catalogue; what is not set is missing."""
        members: dict[str, Any] = {}
        if self.reserve_bytes is not None:
            members["reserve_bytes"] = self.reserve_bytes
        if self.locks:
            members["locks"] = [{"since": each.since.isoformat(), "seconds": each.seconds} for each in self.locks]
        if self.immutable_files:
            members["immutable_files"] = True
        return members

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> RepositoryOptions:
        """Returns the options that a repository's `config` holds."""
        reserve = config.get("reserve_bytes")
        return cls(
            reserve_bytes=int(reserve) if reserve is not None else None,
            locks=tuple(
                LockPeriod(datetime.fromisoformat(each["since"]).astimezone(UTC), int(each["seconds"]))
                for each in config.get("locks", ())
            ),
            immutable_files=bool(config.get("immutable_files", False)),
        )
