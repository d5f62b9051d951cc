"""How much of a kind happens at a time on one host and on one datastore (cbt-facts 14).

A host has 48 MB for NFC buffers and opens 50 disks at most, vCenter lets about 52 NFC connections through, and each
snapshot stuns its VM and writes to its datastore. Whoever finds no room waits; nobody holds one place while waiting for
another, so nobody waits in a circle.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager


class Crowding:
    """Places of one kind.

    Args:
        most: How many may be at a host, and how many at a datastore.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()
        self._left = asyncio.Condition()

    async def enter(self, places: Collection[str], seconds: float | None = None) -> bool:
        """Takes a place at each host and datastore named, all at once.

        Args:
            places: Their ids.
            seconds: How long to wait; None for as long as it takes.

        Returns:
            Whether they were taken.
        """
        wanted = set(places)
        try:
            async with asyncio.timeout(seconds), self._left:
                await self._left.wait_for(lambda: all(self._taken[each] < self._most for each in wanted))
                self._taken.update(wanted)
        except TimeoutError:
            return False
        return True

    async def leave(self, places: Collection[str]) -> None:
        """Gives the places back."""
        async with self._left:
            self._taken.subtract(set(places))
            self._taken += Counter()  # forgets those that are empty
            self._left.notify_all()

    @asynccontextmanager
    async def inside(self, places: Sequence[str]) -> AsyncIterator[None]:
        """Has the places for the time of the block."""
        await self.enter(places)
        try:
            yield
        finally:
            await self.leave(places)
