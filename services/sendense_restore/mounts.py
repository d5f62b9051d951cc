"""All mounts of this service: made, kept under a lease, ended when asked, idle, too old or at the service's end.

Memory is what counts while the process lives; after its death `recover` undoes everything, since a mount's users
know only a dead process. The table tells which leases are still to be given back.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import stamina
import structlog

from sendense_restore.backend import Backend
from sendense_restore.errors import (
    MountBusy,
    MountNotFound,
    MountNotReady,
    RequestIdReused,
    ServiceStopping,
    TooManyMounts,
    UnmountFailed,
)
from sendense_restore.mount import Lifetime, Mount
from sendense_restore.places import Places
from sendense_restore.points import Points
from sendense_restore.store import MountRow, MountStore
from sendense_restore.teardown import TeardownError
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

_CUT_SECONDS = 10.0
_RENEW_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What mounts may use.

    Attributes:
        most_mounts: At once.
        lifetime: Of each.
        drain_seconds: How long an unmount waits for running downloads.
        lease_seconds: Of the lease on a mounted point.
    """

    most_mounts: int
    lifetime: Lifetime
    drain_seconds: float
    lease_seconds: int


class Mounts:
    """The mounts that exist now.

    Args:
        backend: Makes and undoes them.
        points: The backup and repository services.
        store: The table.
        places: Where they lie; owned by this process.
        limits: What they may use.
    """

    def __init__(self, backend: Backend, points: Points, store: MountStore, places: Places, limits: Limits) -> None:
        self._backend = backend
        self._points = points
        self._store = store
        self._places = places
        self._limits = limits
        self._mounts: dict[str, Mount] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._giving_back: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def backend_name(self) -> str:
        """`kernel` or `guestfs`."""
        return self._backend.name

    async def recover(self) -> None:
        """Undoes what an earlier run left; call it before the first mount. Leases are given back in the background."""
        for place in await asyncio.to_thread(self._places.left):
            log.warning("cleaning up a mount of an earlier run", mount_id=place.mount_id)
            try:
                await self._backend.unmount(place)
            except TeardownError:
                log.exception("a mount of an earlier run cannot be undone", mount_id=place.mount_id)
        for row in await self._store.all():
            self._spawn(self._give_back_until_done(row.mount_id, row.backup_id))

    def all(self) -> list[Mount]:
        """Returns the mounts, oldest first."""
        return sorted(self._mounts.values(), key=lambda mount: mount.created_at)

    def get(self, mount_id: str) -> Mount:
        """Returns a mount.

        Raises:
            MountNotFound: There is none of that id.
        """
        if mount_id not in self._mounts:
            raise MountNotFound(mount_id)
        return self._mounts[mount_id]

    async def mount(self, backup_id: str, request_id: str) -> Mount:
        """Mounts a backup's restore point; goes on in the background when the caller goes away.

        Args:
            backup_id: A completed backup, or a unique prefix of one.
            request_id: The same again returns the same mount; empty for none.

        Raises:
            SendenseError: It is not to be had, or cannot be mounted; nothing is left.
            TooManyMounts: The limit is reached.
            RequestIdReused: The request id made a mount of another backup.
        """
        known = next((m for m in self._mounts.values() if request_id and m.request_id == request_id), None)
        if known is None:
            known = self._begin(backup_id, request_id)
        elif backup_id not in (known.asked, known.backup_id):
            raise RequestIdReused(request_id, known.backup_id)
        if known.making is not None:
            # Not awaited itself: a caller that goes away must not end what another may wait for.
            await asyncio.wait([known.making])
            if known.making.cancelled():
                raise MountNotReady(known.mount_id, "unmounted")
            known.making.result()
        return known

    def _begin(self, backup_id: str, request_id: str) -> Mount:
        if self._stopping:
            raise ServiceStopping
        if len(self._mounts) >= self._limits.most_mounts:
            raise TooManyMounts(self._limits.most_mounts)
        place = self._places.of(f"mount-{uuid.uuid4()}")
        mount = Mount(place, backup_id, request_id, self._limits.lifetime)
        self._mounts[mount.mount_id] = mount
        mount.making = self._spawn(self._make(mount))
        return mount

    async def _make(self, mount: Mount) -> None:
        started = time.monotonic()
        try:
            mount.backup_id = await self._points.resolve(mount.asked)
            await self._store.add(
                MountRow(
                    mount_id=mount.mount_id,
                    backup_id=mount.backup_id,
                    request_id=mount.request_id,
                    state="mounting",
                    backend=self._backend.name,
                    mount_path=str(mount.place.root),
                    created_at=mount.created_at,
                )
            )
            try:
                await self._points.lease(mount.backup_id, mount.mount_id, self._limits.lease_seconds)
                point = await self._points.get(mount.backup_id)
                mount.tree = await self._backend.mount(mount.backup_id, point.disks, mount.place)
            except BaseException:
                await self._give_back(mount)
                raise
        except BaseException:
            mount.state = "gone"
            self._mounts.pop(mount.mount_id, None)
            raise
        mount.state = "mounted"
        mount.touch()
        mount.watcher = self._spawn(self._watch(mount))
        await self._store.set_state(mount.mount_id, "mounted")
        seconds = round(time.monotonic() - started, 4)
        log.info("mounted", mount_id=mount.mount_id, backup_id=mount.backup_id, seconds=seconds)

    async def unmount(self, mount_id: str, *, force: bool) -> None:
        """Unmounts; waits for running downloads unless forced.

        Raises:
            MountNotFound: There is none of that id.
            MountBusy: Somebody uses it still; it stays mounted.
            MountNotReady: It is being mounted.
            UnmountFailed: Something is left; it can be tried again.
        """
        mount = self.get(mount_id)
        if force:
            mount.cut_downloads()  # an unmount that waits for them holds the lock
        await asyncio.shield(self._spawn(self._unmount(mount, force=force)))

    async def _unmount(self, mount: Mount, *, force: bool) -> None:
        if mount.state == "mounting" and mount.making is not None:
            if not force:
                raise MountNotReady(mount.mount_id, mount.state)
            mount.making.cancel()
            await asyncio.wait([mount.making])
        async with mount.lock:
            if mount.state == "gone":
                return
            state, mount.state = mount.state, "unmounting"
            try:
                await self._wait_for_users(mount, force=force)
            except BaseException:
                mount.state = state
                raise
            try:
                await self._backend.unmount(mount.place)
            except TeardownError as error:
                mount.state = "failed"
                raise UnmountFailed(mount.mount_id, error.problem) from error
            mount.state = "gone"
            self._mounts.pop(mount.mount_id, None)
        if mount.watcher is not None and mount.watcher is not asyncio.current_task():
            mount.watcher.cancel()
        log.info("unmounted", mount_id=mount.mount_id, backup_id=mount.backup_id)
        await self._give_back(mount)

    async def _wait_for_users(self, mount: Mount, *, force: bool) -> None:
        if force:
            mount.cut_downloads()
            await mount.wait_unused(_CUT_SECONDS)
            return
        if not await mount.wait_unused(self._limits.drain_seconds):
            raise MountBusy(mount.mount_id, [f"{mount.users} running downloads"])
        users = await self._backend.users(mount.place)
        if users:
            raise MountBusy(mount.mount_id, users)

    async def _watch(self, mount: Mount) -> None:
        """Renews the lease, and ends the mount when it is idle or too old, or when its storage has gone."""
        if mount.tree is None:
            return
        lost: set[asyncio.Future[str]] = {mount.tree.lost}
        renew_at = time.monotonic() + self._limits.lease_seconds / 3
        while mount.state != "gone":
            pause = max(0.0, min(renew_at - time.monotonic(), mount.seconds_left))
            if lost:
                await asyncio.wait(lost, timeout=pause)
            else:
                await asyncio.sleep(pause)
            if lost and mount.tree.lost.done():
                lost.clear()
                await self._fail(mount, mount.tree.lost.result())
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + await self._renew(mount)
            if mount.seconds_left <= 0:
                await self._expire(mount)

    async def _expire(self, mount: Mount) -> None:
        log.info("unmounting after its time", mount_id=mount.mount_id, too_old=mount.is_too_old)
        if mount.is_too_old:
            await mount.wait_unused(self._limits.drain_seconds)
        try:
            await self._unmount(mount, force=mount.is_too_old)
        except MountBusy as error:
            log.info("not unmounted, since it is used", mount_id=mount.mount_id, users=error.users)
            mount.touch()
        except UnmountFailed:
            log.exception("cannot unmount", mount_id=mount.mount_id)
            await asyncio.sleep(_RENEW_RETRY_SECONDS)

    async def _renew(self, mount: Mount) -> float:
        """Renews the lease; returns after how many seconds the next try is due."""
        if mount.state == "failed":
            return self._limits.lease_seconds / 3
        try:
            await self._points.lease(mount.backup_id, mount.mount_id, self._limits.lease_seconds)
        except SendenseError as error:
            log.warning("a lease is not renewed", mount_id=mount.mount_id, why=str(error), reason=error.reason)
            return min(_RENEW_RETRY_SECONDS, self._limits.lease_seconds / 3)
        return self._limits.lease_seconds / 3

    async def _fail(self, mount: Mount, how: str) -> None:
        """Undoes a mount whose storage has gone, and keeps it as `failed` until its time is over."""
        async with mount.lock:
            if mount.state != "mounted":
                return
            log.error("a mount has lost its storage", mount_id=mount.mount_id, why=how)
            mount.state = "failed"
            mount.cut_downloads()
            await mount.wait_unused(_CUT_SECONDS)
            try:
                await self._backend.unmount(mount.place)
            except TeardownError:
                log.exception("a failed mount is not undone", mount_id=mount.mount_id)
        await self._give_back(mount)

    async def close(self) -> None:
        """Undoes all mounts and lets nothing new begin; call it when no call comes in any more."""
        self._stopping = True
        mounts = self.all()
        log.info("undoing mounts", count=len(mounts))
        results = await asyncio.gather(*(self._unmount(mount, force=True) for mount in mounts), return_exceptions=True)
        for mount, result in zip(mounts, results, strict=True):
            if isinstance(result, BaseException):
                log.error("not unmounted at the end", mount_id=mount.mount_id, why=str(result))
        if self._giving_back:
            await asyncio.wait(self._giving_back, timeout=_CUT_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _give_back(self, mount: Mount) -> None:
        """Ends the lease and forgets the mount; what does not succeed now goes on in the background."""
        task = self._spawn(self._give_back_now(mount.mount_id, mount.backup_id))
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)
        await asyncio.shield(task)

    async def _give_back_now(self, mount_id: str, backup_id: str) -> None:
        try:
            await self._points.release(backup_id, mount_id)
        except SendenseError as error:
            log.warning("a lease is given back later", mount_id=mount_id, why=str(error))
            await self._store.set_state(mount_id, "unmounting")
            if not self._stopping:  # otherwise the next start does it
                self._spawn(self._give_back_until_done(mount_id, backup_id))
        else:
            await self._store.remove(mount_id)

    async def _give_back_until_done(self, mount_id: str, backup_id: str) -> None:
        retries = stamina.retry_context(on=SendenseError, attempts=None, timeout=None, wait_initial=0.2, wait_max=30.0)
        async for attempt in retries:
            with attempt:
                await self._points.release(backup_id, mount_id)
        await self._store.remove(mount_id)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Taken note of here, since a caller that went away takes none; expected errors reach the callers.
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, SendenseError):
            log.error("an unexpected error in the background", exc_info=error)
