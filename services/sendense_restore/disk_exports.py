"""Whole disks as image files: written in the background under a lease, kept to be downloaded, removed after a day.

What always holds: a file is offered only when it is whole, and nothing of an earlier run is left at the next start.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from sendense_db.columns import utc_now
from sendense_qemu.errors import QemuError
from sendense_qemu.header import check_chain
from sendense_restore import room
from sendense_restore.backend import Disk
from sendense_restore.conversion import convert
from sendense_restore.errors import (
    DiskExportFailed,
    DiskExportNotFound,
    DiskExportNotReady,
    NoRoom,
    ServiceStopping,
    TooManyDiskExports,
)
from sendense_restore.leases import Leases
from sendense_restore.mounts import chosen_disks
from sendense_restore.points import Points, is_admitted
from sendense_restore.programs import ProgramError
from sendense_restore.store import MountRow
from sendense_restore.tree import Wish
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()


@dataclass(eq=False)
class DiskExport:
    """A disk that is written, or was written, into a file.

    Attributes:
        export_id: Identifier.
        backup_id: The restore point.
        disk: The disk.
        fmt: `raw`, `qcow2` or `vmdk`.
        directory: Holds the file.
        most_seconds: How long it is kept.
        state: `running`, `completed` or `failed`.
        percent: How far it is.
        file_size_bytes: Of the file, once it is whole.
        error: Why it failed.
        task: Writes it, then waits for its end.
    """

    export_id: str
    backup_id: str
    disk: Disk
    fmt: str
    directory: Path
    most_seconds: float
    state: str = "running"
    percent: float = 0.0
    file_size_bytes: int = 0
    error: SendenseError | None = None
    created_at: datetime = field(default_factory=utc_now)
    task: asyncio.Task[None] | None = None

    @property
    def file(self) -> Path:
        """The image, once it is whole."""
        return self.directory / f"{self.backup_id}-disk-{self.disk.disk_id}.{self.fmt}"

    @property
    def expires_at(self) -> datetime:
        """When it is removed."""
        return self.created_at + timedelta(seconds=self.most_seconds)


class DiskExports:
    """The exports that there are.

    Args:
        points: The backup and repository services.
        leases: Keeps points from being merged or deleted while they are read.
        directory: One subdirectory an export; owned by this process.
        most: At once.
        most_seconds: How long one is kept.
    """

    def __init__(self, points: Points, leases: Leases, directory: Path, most: int, most_seconds: float) -> None:
        self._points = points
        self._leases = leases
        self._directory = directory
        self._most = most
        self._most_seconds = most_seconds
        self._exports: dict[str, DiskExport] = {}
        self._stopping = False

    async def recover(self) -> None:
        """Removes what an earlier run left."""
        await asyncio.to_thread(_empty, self._directory)

    def all(self) -> list[DiskExport]:
        """Returns the exports, oldest first."""
        return sorted(self._exports.values(), key=lambda export: export.created_at)

    def get(self, export_id: str) -> DiskExport:
        """Returns an export.

        Raises:
            DiskExportNotFound: There is none of that id.
        """
        if export_id not in self._exports:
            raise DiskExportNotFound(export_id)
        return self._exports[export_id]

    async def admitted(self, export_id: str) -> DiskExport:
        """Returns an export that the caller's token admits; one outside of its limits is as if it were not there.

        Raises:
            DiskExportNotFound: There is none of that id, for this caller.
        """
        export = self.get(export_id)
        if not await is_admitted(self._points, export.backup_id):
            raise DiskExportNotFound(export_id)
        return export

    async def all_admitted(self) -> list[DiskExport]:
        """Returns the exports that the caller's token admits, oldest first."""
        return [export for export in self.all() if await is_admitted(self._points, export.backup_id)]

    async def start(self, backup_id: str, disk_id: int, fmt: str, *, force: bool) -> DiskExport:
        """Begins to write a disk into a file.

        Raises:
            SendenseError: The point is not to be had, is damaged, has no such disk, or there is no room.
        """
        if self._stopping:
            raise ServiceStopping
        if len(self._exports) >= self._most:
            raise TooManyDiskExports(self._most)
        whole_id = await self._points.resolve(backup_id)
        export_id = f"export-{uuid.uuid4()}"
        directory = self._directory / export_id
        try:
            row = MountRow(export_id, whole_id, "", "mounted", "kernel", str(directory), utc_now())
            await self._leases.take(row)
            point = await self._points.get(whole_id)
            (disk,) = chosen_disks(point, Wish(disk_ids=(disk_id,), force=force))
            try:
                await asyncio.to_thread(_check_room, disk, self._directory)
            except (QemuError, OSError) as error:
                raise DiskExportFailed(export_id, str(error)) from error
            await asyncio.to_thread(directory.mkdir, mode=0o700)
        except BaseException:
            await self._leases.give_back(export_id, whole_id)
            raise
        export = DiskExport(export_id, whole_id, disk, fmt, directory, self._most_seconds)
        self._exports[export_id] = export
        export.task = asyncio.create_task(self._live(export))
        return export

    async def open(self, export_id: str) -> tuple[DiskExport, int, os.stat_result]:
        """Opens the file of a completed export for reading; the caller closes it.

        Raises:
            DiskExportNotFound: There is none of that id.
            DiskExportNotReady: It is not completed.
        """
        export = await self.admitted(export_id)
        if export.state != "completed":
            raise DiskExportNotReady(export_id, export.state)
        fd = await asyncio.to_thread(os.open, export.file, os.O_RDONLY | os.O_CLOEXEC)
        return export, fd, os.fstat(fd)

    async def delete(self, export_id: str) -> None:
        """Ends an export and removes its file; a download that runs has its own descriptor and goes on.

        Raises:
            DiskExportNotFound: There is none of that id.
        """
        export = await self.admitted(export_id)
        if export.task is not None:
            export.task.cancel()
            await asyncio.wait([export.task])

    async def close(self) -> None:
        """Ends and removes all exports."""
        self._stopping = True
        for export in self.all():
            await self.delete(export.export_id)

    async def _live(self, export: DiskExport) -> None:
        """Writes the file under a renewed lease, keeps it until its time is over, and removes it, whatever happens."""
        try:
            async with asyncio.timeout(export.most_seconds):
                await self._write(export)
                await asyncio.Event().wait()
        except TimeoutError:
            log.info("removing a disk export after its time", export_id=export.export_id)
        finally:
            self._exports.pop(export.export_id, None)
            await asyncio.shield(asyncio.ensure_future(self._remove(export)))

    async def _write(self, export: DiskExport) -> None:
        def note(percent: float) -> None:
            export.percent = percent

        renewing = asyncio.create_task(self._renew(export))
        partial = export.directory / "partial"
        try:
            await convert(export.disk.layer, partial, export.fmt, note)
            status = await asyncio.to_thread(partial.stat)
            await asyncio.to_thread(partial.rename, export.file)
            export.file_size_bytes = status.st_size
        except (QemuError, ProgramError, OSError) as error:
            export.error = _failure(export, error, self._directory)
            export.state = "failed"
            log.warning("a disk export failed", export_id=export.export_id, why=str(error))
            partial.unlink(missing_ok=True)
        else:
            export.state, export.percent = "completed", 100.0
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            await self._leases.give_back(export.export_id, export.backup_id)

    async def _renew(self, export: DiskExport) -> None:
        pause = self._leases.pause
        while True:
            await asyncio.sleep(pause)
            pause = await self._leases.renew(export.export_id, export.backup_id)

    async def _remove(self, export: DiskExport) -> None:
        await asyncio.to_thread(shutil.rmtree, export.directory, ignore_errors=True)


def _failure(export: DiskExport, error: Exception, directory: Path) -> SendenseError:
    if room.is_out(error):
        return NoRoom(directory, export.disk.size_bytes, room.free(directory))
    return DiskExportFailed(export.export_id, str(error))


def _check_room(disk: Disk, directory: Path) -> None:
    """Compares what the layers hold, at most the disk's size, with what is free."""
    layer = disk.layer.resolve()
    headers = check_chain(layer, [layer.parent])
    held = sum(header.path.stat().st_blocks * 512 for header in headers)
    room.require(directory, min(held, headers[0].virtual_size))


def _empty(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
