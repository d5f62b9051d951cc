"""The arithmetic of progress: moving rate, percent, time left. Pure; the clock is an argument."""

from __future__ import annotations

from collections import deque

RATE_WINDOW = 10.0
"""Seconds over which the rate is taken: short enough to follow a change, long enough not to jump."""


class RateMeter:
    """Bytes a second over the last `RATE_WINDOW` seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, moment: float, done_bytes: int) -> int:
        """Takes a sample and returns the rate.

        Args:
            moment: Seconds of a clock that does not jump.
            done_bytes: Bytes done so far. Fewer than before (a resumed capture) begin a new measurement.
        """
        if self._samples and done_bytes < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((moment, done_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= moment - RATE_WINDOW:
            self._samples.popleft()
        first_moment, first_bytes = self._samples[0]
        elapsed = moment - first_moment
        return int((done_bytes - first_bytes) / elapsed) if elapsed > 0 else 0


def percent(done_bytes: int, total_bytes: int) -> float:
    """Returns 0 to 100, rounded to two digits; 0 while the total is not known."""
    if total_bytes <= 0:
        return 0.0
    return round(min(100.0, 100.0 * done_bytes / total_bytes), 2)


def eta_seconds(done_bytes: int, total_bytes: int, rate: int) -> int:
    """Returns the seconds left at this rate, rounded up; -1 when not known."""
    if total_bytes <= 0 or rate <= 0:
        return -1
    return -(-max(0, total_bytes - done_bytes) // rate)
