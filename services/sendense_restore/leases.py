"""Leases on restore points that are read: taken before anything is opened, renewed, and given back for certain.

The table has a row for each lease that may still be held, so that one of a dead process is given back by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import stamina
import structlog

from sendense_restore.points import Points
from sendense_restore.store import MountRow, MountStore
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

_RENEW_RETRY_SECONDS = 10.0
_END_SECONDS = 10.0


class Leases:
    """All leases of this service.

    Args:
        points: The repository service.
        store: The table.
        seconds: How long a lease lasts unless it is renewed.
    """

    def __init__(self, points: Points, store: MountStore, seconds: int) -> None:
        self._points = points
        self._store = store
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._now: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def pause(self) -> float:
        """Seconds between two renewals."""
        return self._seconds / 3

    async def recover(self, before: Callable[[str], Awaitable[None]]) -> None:
        """Gives back, in the background, what an earlier run held.

        Args:
            before: What is to be done for a holder before its lease may end.
        """
        for row in await self._store.all():
            self._spawn(self._recover_one(row, before))

    async def _recover_one(self, row: MountRow, before: Callable[[str], Awaitable[None]]) -> None:
        await before(row.mount_id)
        await self._give_back_until_done(row.mount_id, row.backup_id)

    async def take(self, row: MountRow) -> None:
        """Notes the holder and takes its lease; on an error, `give_back` is still to be called.

        Raises:
            SendenseError: POINT_NOT_FOUND, SERVICE_UNAVAILABLE.
        """
        await self._store.add(row)
        await self._points.lease(row.backup_id, row.mount_id, self._seconds)

    async def renew(self, holder: str, backup_id: str) -> float:
        """Renews a lease; returns after how many seconds the next try is due."""
        try:
            await self._points.lease(backup_id, holder, self._seconds)
        except SendenseError as error:
            log.warning("a lease is not renewed", mount_id=holder, why=str(error), reason=error.reason)
            return min(_RENEW_RETRY_SECONDS, self.pause)
        return self.pause

    async def set_state(self, holder: str, state: str) -> None:
        """Notes a holder's state."""
        await self._store.set_state(holder, state)

    async def give_back(self, holder: str, backup_id: str) -> None:
        """Ends a lease and forgets its holder; what does not succeed now goes on in the background."""
        task = self._spawn(self._give_back_now(holder, backup_id))
        self._now.add(task)
        task.add_done_callback(self._now.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Waits, for some seconds, for what is being given back; the next start does the rest."""
        self._stopping = True
        if self._now:
            await asyncio.wait(self._now, timeout=_END_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _give_back_now(self, holder: str, backup_id: str) -> None:
        try:
            await self._points.release(backup_id, holder)
        except SendenseError as error:
            log.warning("a lease is given back later", mount_id=holder, why=str(error))
            await self._store.set_state(holder, "unmounting")
            if not self._stopping:  # otherwise the next start does it
                self._spawn(self._give_back_until_done(holder, backup_id))
        else:
            await self._store.remove(holder)

    async def _give_back_until_done(self, holder: str, backup_id: str) -> None:
        retries = stamina.retry_context(on=SendenseError, attempts=None, timeout=None, wait_initial=0.2, wait_max=30.0)
        async for attempt in retries:
            with attempt:
                await self._points.release(backup_id, holder)
        await self._store.remove(holder)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a lease is not given back", exc_info=error)
