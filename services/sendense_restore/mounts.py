"""All mounts of this service: made, kept under a lease, ended when asked, idle, too old or at the service's end.

Memory is what counts while the process lives; after its death `recover` undoes everything, since a mount's users
know only a dead process.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from sendense_restore.backend import Disk
from sendense_restore.errors import (
    DiskMissing,
    MountBusy,
    MountNotFound,
    MountNotReady,
    PointDamaged,
    PointSuspect,
    RequestIdReused,
    ServiceStopping,
    TooManyMounts,
    UnmountFailed,
)
from sendense_restore.leases import Leases
from sendense_restore.mount import Lifetime, Mount
from sendense_restore.openings import Openings
from sendense_restore.places import Places
from sendense_restore.points import Points, RestorePoint, is_admitted
from sendense_restore.store import MountRow
from sendense_restore.teardown import TeardownError
from sendense_restore.tree import Mounter, Wish
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

_CUT_SECONDS = 10.0
_RETRY_SECONDS = 10.0
_FAILED_SECONDS = 900.0
"""A mount that failed after its id was told stays visible for so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What mounts may use.

    Attributes:
        most_mounts: At once.
        lifetime: Of each.
        drain_seconds: How long an unmount waits for running downloads.
    """

    most_mounts: int
    lifetime: Lifetime
    drain_seconds: float


class Mounts:
    """The mounts that exist now.

    Args:
        mounter: Makes and undoes them.
        points: The backup and repository services.
        leases: Keeps points from being merged or deleted.
        places: Where they lie; owned by this process.
        limits: What they may use.
    """

    def __init__(self, mounter: Mounter, points: Points, leases: Leases, places: Places, limits: Limits) -> None:
        self._mounter = mounter
        self._openings = Openings(mounter)
        self._points = points
        self._leases = leases
        self._places = places
        self._limits = limits
        self._mounts: dict[str, Mount] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def recover(self) -> None:
        """Undoes what an earlier run left; call it before the first mount."""
        for place in await asyncio.to_thread(self._places.left):
            log.warning("cleaning up a mount of an earlier run", mount_id=place.mount_id)
            try:
                await self._mounter.unmount(place)
            except TeardownError:
                log.exception("a mount of an earlier run cannot be undone", mount_id=place.mount_id)

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

    async def admitted(self, mount_id: str) -> Mount:
        """Returns a mount that the caller's token admits; one outside of its limits is as if it were not there.

        Raises:
            MountNotFound: There is none of that id, for this caller.
        """
        mount = self.get(mount_id)
        if not await is_admitted(self._points, mount.backup_id or mount.asked):
            raise MountNotFound(mount_id)
        return mount

    async def all_admitted(self) -> list[Mount]:
        """Returns the mounts that the caller's token admits, oldest first."""
        found = []
        for mount in self.all():
            try:
                found.append(await self.admitted(mount.mount_id))
            except MountNotFound:
                continue
        return found

    async def mount(self, backup_id: str, request_id: str, wish: Wish, wait_seconds: float) -> Mount:
        """Mounts a backup's restore point; goes on in the background when the caller goes away.

        Args:
            backup_id: A completed backup, or a unique prefix of one.
            request_id: The same again returns the same mount; empty for none.
            wish: How to mount it.
            wait_seconds: After so long it is returned as `mounting`.

        Raises:
            SendenseError: It is not to be had, or cannot be mounted; nothing is left.
            TooManyMounts: The limit is reached.
            RequestIdReused: The request id made a mount of another backup.
        """
        known = next((m for m in self._mounts.values() if request_id and m.request_id == request_id), None)
        if known is None:
            known = self._begin(backup_id, request_id, wish)
        elif backup_id not in (known.asked, known.backup_id):
            raise RequestIdReused(request_id, known.backup_id)
        if known.making is not None:
            # Not awaited itself: a caller that goes away must not end what another may wait for.
            await asyncio.wait([known.making], timeout=wait_seconds)
            if not known.making.done():
                known.told = True
            elif known.making.cancelled():
                raise MountNotReady(known.mount_id, "unmounted")
            else:
                known.making.result()
        return await self.admitted(known.mount_id)

    def _begin(self, backup_id: str, request_id: str, wish: Wish) -> Mount:
        if self._stopping:
            raise ServiceStopping
        if sum(mount.error is None for mount in self._mounts.values()) >= self._limits.most_mounts:
            raise TooManyMounts(self._limits.most_mounts)
        place = self._places.of(f"mount-{uuid.uuid4()}")
        mount = Mount(place, backup_id, request_id, self._limits.lifetime, wish)
        self._mounts[mount.mount_id] = mount
        mount.making = self._spawn(self._make(mount))
        return mount

    async def _make(self, mount: Mount) -> None:
        started = time.monotonic()
        try:
            mount.backup_id = await self._points.resolve(mount.asked)
            try:
                await self._leases.take(
                    MountRow(
                        mount_id=mount.mount_id,
                        backup_id=mount.backup_id,
                        request_id=mount.request_id,
                        state="mounting",
                        backend=mount.wish.backend or "kernel",
                        mount_path=str(mount.place.root),
                        created_at=mount.created_at,
                    )
                )
                point = await self._points.get(mount.backup_id)
                disks = chosen_disks(point, mount.wish)
                mount.opening, mount.tree = await self._openings.open(mount.backup_id, disks, mount.place, mount.wish)
            except BaseException:
                await self._leases.give_back(mount.mount_id, mount.backup_id)
                raise
        except BaseException as error:
            if mount.told and isinstance(error, SendenseError):
                self._keep_failure(mount, error)
            else:
                mount.state = "gone"
                self._mounts.pop(mount.mount_id, None)
            raise
        finally:
            mount.wish = replace(mount.wish, passphrases=())
        mount.state = "mounted"
        mount.touch()
        mount.watcher = self._spawn(self._watch(mount))
        await self._leases.set_state(mount.mount_id, "mounted")
        seconds = round(time.monotonic() - started, 4)
        log.info(
            "mounted",
            mount_id=mount.mount_id,
            backup_id=mount.backup_id,
            backend=mount.tree.backend,
            why=mount.tree.backend_reason,
            seconds=seconds,
        )

    def _keep_failure(self, mount: Mount, error: SendenseError) -> None:
        mount.state, mount.error = "failed", error
        mount.lifetime = Lifetime(min(_FAILED_SECONDS, mount.lifetime.idle), mount.lifetime.most)
        mount.touch()
        mount.watcher = self._spawn(self._forget_failure(mount))

    async def _forget_failure(self, mount: Mount) -> None:
        await asyncio.sleep(max(0.0, mount.seconds_left))
        self._mounts.pop(mount.mount_id, None)

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
                await self._let_go(mount)
            except TeardownError as error:
                mount.state = "failed"
                raise UnmountFailed(mount.mount_id, error.problem) from error
            mount.state = "gone"
            self._mounts.pop(mount.mount_id, None)
        if mount.watcher is not None and mount.watcher is not asyncio.current_task():
            mount.watcher.cancel()
        log.info("unmounted", mount_id=mount.mount_id, backup_id=mount.backup_id)
        if mount.error is None:  # a mount that never was has given it back already
            await self._leases.give_back(mount.mount_id, mount.backup_id)

    async def _let_go(self, mount: Mount) -> None:
        if mount.opening is not None:
            await self._openings.let_go(mount.opening, mount.place)
            mount.opening = None

    async def _wait_for_users(self, mount: Mount, *, force: bool) -> None:
        if force:
            mount.cut_downloads()
            await mount.wait_unused(_CUT_SECONDS)
            return
        if not await mount.wait_unused(self._limits.drain_seconds):
            raise MountBusy(mount.mount_id, [f"{mount.users} running downloads"])
        users = await self._mounter.users(mount.place)
        if users:
            raise MountBusy(mount.mount_id, users)

    async def _watch(self, mount: Mount) -> None:
        """Renews the lease, and ends the mount when it is idle or too old, or when its storage has gone."""
        if mount.tree is None:
            return
        lost: set[asyncio.Future[str]] = {mount.tree.lost}
        renew_at = time.monotonic() + self._leases.pause
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
                held = mount.state != "failed"
                pause = await self._leases.renew(mount.mount_id, mount.backup_id) if held else self._leases.pause
                renew_at = time.monotonic() + pause
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
            await asyncio.sleep(_RETRY_SECONDS)

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
                await self._let_go(mount)
            except TeardownError:
                log.exception("a failed mount is not undone", mount_id=mount.mount_id)
        await self._leases.give_back(mount.mount_id, mount.backup_id)

    async def close(self) -> None:
        """Undoes all mounts and lets nothing new begin; call it when no call comes in any more."""
        self._stopping = True
        mounts = self.all()
        log.info("undoing mounts", count=len(mounts))
        results = await asyncio.gather(*(self._unmount(mount, force=True) for mount in mounts), return_exceptions=True)
        for mount, result in zip(mounts, results, strict=True):
            if isinstance(result, BaseException):
                log.error("not unmounted at the end", mount_id=mount.mount_id, why=str(result))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

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


def chosen_disks(point: RestorePoint, wish: Wish) -> Sequence[Disk]:
    """Returns the disks of a point that a caller wants.

    Raises:
        PointDamaged: The point is known to be damaged, and the caller does not insist.
        PointSuspect: An audit doubts the point, and the caller does not insist.
        DiskMissing: The point has no such disk.
    """
    if point.damage and not wish.force:
        raise PointDamaged(point.backup_id, point.damage)
    if point.suspicion and not wish.force:
        raise PointSuspect(point.backup_id, point.suspicion)
    present = {disk.disk_id: disk for disk in point.disks}
    for disk_id in wish.disk_ids:
        if disk_id not in present:
            raise DiskMissing(point.backup_id, disk_id, sorted(present))
    return [disk for disk in point.disks if not wish.disk_ids or disk.disk_id in wish.disk_ids]
