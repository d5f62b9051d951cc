"""Mutations that a caller's deadline does not cut: they run to their end, and a repeated call waits for the first.

Without this, a cancelled call would give its locks back while a thread still writes or syncs for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Unbroken:
    """Runs coroutines that survive the cancellation of whoever waits for them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` to its end and returns its result; cancelling the caller leaves it running."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: nobody may be waiting any more

    async def drain(self) -> None:
        """Waits until everything that was started has ended."""
        while self._running:
            await asyncio.wait(self._running)
