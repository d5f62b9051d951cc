"""Restore points whose disks are offered read-only over NBD, by the exports service on its Unix socket.

What always holds: an offered point is under a lease, and the exports of an offer that this process does not know any
more are taken away by the next start.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import stamina
import structlog

from sendense_db.columns import utc_now
from sendense_restore.errors import ServedPointNotFound, ServiceStopping, TooManyMounts
from sendense_restore.leases import Leases
from sendense_restore.mounts import chosen_disks
from sendense_restore.points import Points, is_admitted
from sendense_restore.store import MountRow
from sendense_restore.tree import Wish
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

PREFIX = "served-"


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk that is offered: its number, name, socket and size in bytes."""

    disk_id: int
    export_name: str
    socket_path: str
    size_bytes: int

    @property
    def uri(self) -> str:
        """Name and socket as one NBD URI."""
        return f"nbd+unix:///{quote(self.export_name, safe='')}?socket={quote(self.socket_path, safe='/')}"


class NbdExports(Protocol):
    """The port to the exports service; `clients` is its adapter."""

    async def serve(self, name: str, layer: Path, holder: str) -> tuple[str, int]:
        """Serves a layer read-only, or renews that; returns socket and size.

        Raises:
            SendenseError: PATH_REFUSED, IMAGE_REFUSED, IMAGE_BUSY, SERVICE_UNAVAILABLE.
        """

    async def stop(self, name: str, holder: str) -> None:
        """Stops serving; what is not served is no error.

        Raises:
            SendenseError: SERVICE_UNAVAILABLE.
        """

    async def names_of(self, holder: str) -> list[str]:
        """Returns the exports that a holder has.

        Raises:
            SendenseError: SERVICE_UNAVAILABLE.
        """


@dataclass(eq=False)
class ServedPoint:
    """A point that is offered.

    Attributes:
        served_id: Identifier; the holder of its lease and exports.
        backup_id: The restore point.
        disks: Its disks.
        layers: For each export's name the layer.
        created_at: When it was asked for.
        expires_at: When it ends.
        task: Renews it and ends it in time.
    """

    served_id: str
    backup_id: str
    disks: tuple[ServedDisk, ...]
    layers: dict[str, Path]
    created_at: datetime
    expires_at: datetime
    task: asyncio.Task[None] | None = None


class ServedPoints:
    """The offers that there are.

    Args:
        points: The backup and repository services.
        exports: The exports service.
        leases: Keeps points from being merged or deleted.
        most: At once.
        most_seconds: How long one lasts.
    """

    def __init__(self, points: Points, exports: NbdExports, leases: Leases, most: int, most_seconds: float) -> None:
        self._points = points
        self._exports = exports
        self._leases = leases
        self._most = most
        self._most_seconds = most_seconds
        self._served: dict[str, ServedPoint] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def end_of_earlier_run(self, served_id: str) -> None:
        """Takes away the exports of an offer of an earlier run; waits for the exports service as long as it takes.

        Other holders of leases have no exports.
        """
        if not served_id.startswith(PREFIX):
            return
        retries = stamina.retry_context(on=SendenseError, attempts=None, timeout=None, wait_initial=0.2, wait_max=30.0)
        async for attempt in retries:
            with attempt:
                for name in await self._exports.names_of(served_id):
                    await self._exports.stop(name, served_id)

    def all(self) -> list[ServedPoint]:
        """Returns the offers, oldest first."""
        return sorted(self._served.values(), key=lambda served: served.created_at)

    async def serve(self, backup_id: str, *, force: bool) -> ServedPoint:
        """Offers all disks of a point.

        Raises:
            SendenseError: The point is not to be had or damaged, or the exports service refuses.
        """
        if self._stopping:
            raise ServiceStopping
        if len(self._served) >= self._most:
            raise TooManyMounts(self._most)
        whole_id = await self._points.resolve(backup_id)
        served_id = f"{PREFIX}{uuid.uuid4()}"
        now = utc_now()
        disks: list[ServedDisk] = []
        layers: dict[str, Path] = {}
        try:
            await self._leases.take(MountRow(served_id, whole_id, "", "mounted", "kernel", "", now))
            point = await self._points.get(whole_id)
            for disk in chosen_disks(point, Wish(force=force)):
                name = f"{served_id}-disk{disk.disk_id}"
                layers[name] = disk.layer
                socket, size = await self._exports.serve(name, disk.layer, served_id)
                disks.append(ServedDisk(disk.disk_id, name, socket, size))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._take_away(served_id, whole_id, list(layers))))
            raise
        expires = now + timedelta(seconds=self._most_seconds)
        served = ServedPoint(served_id, whole_id, tuple(disks), layers, now, expires)
        self._served[served_id] = served
        served.task = asyncio.create_task(self._live(served))
        return served

    async def all_admitted(self) -> list[ServedPoint]:
        """Returns the offers that the caller's token admits, oldest first."""
        return [served for served in self.all() if await is_admitted(self._points, served.backup_id)]

    async def admitted(self, served_id: str) -> ServedPoint:
        """Returns an offer that the caller's token admits; one outside of its limits is as if it were not there.

        Raises:
            ServedPointNotFound: There is none of that id, for this caller.
        """
        served = self._served.get(served_id)
        if served is None or not await is_admitted(self._points, served.backup_id):
            raise ServedPointNotFound(served_id)
        return served

    async def stop(self, served_id: str) -> None:
        """Ends an offer; clients are cut off.

        Raises:
            ServedPointNotFound: There is none of that id.
        """
        served = await self.admitted(served_id)
        if served.task is not None:
            served.task.cancel()
            await asyncio.wait([served.task])

    async def close(self) -> None:
        """Ends all offers."""
        self._stopping = True
        await asyncio.gather(*(self.stop(served.served_id) for served in self.all()))

    async def _live(self, served: ServedPoint) -> None:
        try:
            async with asyncio.timeout(self._most_seconds):
                pause = self._leases.pause
                while True:
                    await asyncio.sleep(pause)
                    pause = await self._leases.renew(served.served_id, served.backup_id)
                    await self._renew(served)
        except TimeoutError:
            log.info("an offer ends after its time", served_id=served.served_id)
        finally:
            self._served.pop(served.served_id, None)
            names = list(served.layers)
            await asyncio.shield(asyncio.ensure_future(self._take_away(served.served_id, served.backup_id, names)))

    async def _renew(self, served: ServedPoint) -> None:
        for name, layer in served.layers.items():
            try:
                await self._exports.serve(name, layer, served.served_id)
            except SendenseError as error:
                log.warning("an export is not renewed", export_name=name, why=str(error), reason=error.reason)

    async def _take_away(self, served_id: str, backup_id: str, names: list[str]) -> None:
        try:
            for name in names:
                await self._exports.stop(name, served_id)
        except SendenseError as error:
            # The lease stays, and with it the row: the next start, or the end of both leases, does the rest.
            log.warning("an export is left behind", served_id=served_id, why=str(error))
            return
        await self._leases.give_back(served_id, backup_id)
