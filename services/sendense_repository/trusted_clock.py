"""How late it surely is: a clock that was set forward makes no lock run out and no restore point old.

The moment that was surely reached is kept with the machine's own count of seconds since its start, which nobody sets.
While the machine runs, no more time has passed than that count says. Over a restart of the machine the wall clock is
believed for two days at most: whoever was off for longer keeps points longer, and never shorter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sendense_db.columns import utc_now

_DRIFT = 1.001
"""A counter may lag behind: 0.1 % is more than any working clock drifts."""
_OFF_SECONDS = 2 * 86_400
_DOUBT = timedelta(hours=1)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Reached:
    """The latest moment that surely has come, and where the machine's count stood then."""

    moment: datetime
    boot_id: str
    boot_seconds: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What the machine says now."""

    wall: datetime
    boot_id: str
    boot_seconds: int


@dataclass(frozen=True, slots=True)
class TrustedTime:
    """The time to count ages with.

    Attributes:
        now: Never later than what has surely come, never later than the clock.
        wall: What the clock says.
    """

    now: datetime
    wall: datetime

    @property
    def in_doubt(self) -> bool:
        """Whether the clock is further than time can have passed."""
        return self.wall - self.now > _DOUBT


def read_machine() -> Reading:
    """Returns the wall clock and the count of seconds since the machine's start."""
    boot_id = _BOOT_ID.read_text().strip()
    return Reading(utc_now(), boot_id, int(time.clock_gettime(time.CLOCK_BOOTTIME)))


def advance(saved: Reached | None, reading: Reading) -> Reached:
    """Returns the moment that has surely come by now."""
    if saved is None:
        return Reached(reading.wall, reading.boot_id, reading.boot_seconds)
    if saved.boot_id == reading.boot_id:
        passed = float(max(0, reading.boot_seconds - saved.boot_seconds))
    else:
        off = (reading.wall - saved.moment).total_seconds() - reading.boot_seconds
        passed = reading.boot_seconds + min(max(0.0, off), _OFF_SECONDS)
    most = saved.moment + timedelta(seconds=passed * _DRIFT)
    if reading.wall >= most:
        return Reached(most, reading.boot_id, reading.boot_seconds)
    if reading.wall < saved.moment:
        # The clock went back: what was reached stays reached, and the count goes on from here.
        return Reached(saved.moment, reading.boot_id, reading.boot_seconds)
    return Reached(reading.wall, reading.boot_id, reading.boot_seconds)


def trusted(reached: Reached, reading: Reading) -> TrustedTime:
    """Returns the time to count ages with."""
    return TrustedTime(min(reached.moment, reading.wall), reading.wall)
