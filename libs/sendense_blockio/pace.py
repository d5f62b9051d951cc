"""A limit of bytes per second that several copies of one process share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_SECONDS = 0.25
"""How much of a second's bytes may go at once after a pause."""


class Pace:
    """Tells when the next request may begin; from any thread.

    Requests are not cut: one that is larger than what is free goes, and the next ones wait the longer.

    Args:
        bytes_per_second: The limit over all who share it.
        clock: Tells the time in seconds.
    """

    def __init__(self, bytes_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        if bytes_per_second <= 0:
            raise ValueError(f"a pace is above 0 bytes a second, not {bytes_per_second}")
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, length: int) -> float:
        """Begins a request of `length` bytes if it may begin now.

        Returns:
            0 when it began; else the seconds until it is worth asking again.
        """
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_SECONDS)
            if self._free_at > now:
                return self._free_at - now
            self._free_at += length / self._rate
        return 0.0
