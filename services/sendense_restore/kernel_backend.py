"""The kernel back end: overlays exported over FUSE, loop devices on their partitions, kernel mounts, one tree.

The kernel parses the guest's file systems here: only types on a short list reach it, always read-only for the
user, with the journal replayed into the overlay first. What needs more (LVM, LUKS, md) carries its reason.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sendense_qemu.errors import QemuError
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_restore import loops, mount_table
from sendense_restore.backend import Disk, Tree
from sendense_restore.composition import compose, read_operating_system
from sendense_restore.concurrency import all_or_nothing
from sendense_restore.errors import MountFailed, NoFileSystem
from sendense_restore.exported_disks import export_disks
from sendense_restore.holders import holders
from sendense_restore.places import Place
from sendense_restore.probe import probe_disk
from sendense_restore.programs import ProgramError
from sendense_restore.teardown import TeardownError, tear_down
from sendense_restore.volume import Volume

log = structlog.get_logger()

_PARALLEL_MOUNTS = 4


@dataclass(frozen=True, slots=True)
class _HowToMount:
    """The kernel's (or a helper's) name of a file system, and options besides the safe ones."""

    kernel_type: str
    options: tuple[str, ...] = ()


_FILE_SYSTEMS = {
    "ext2": _HowToMount("ext4"),
    "ext3": _HowToMount("ext4"),
    "ext4": _HowToMount("ext4"),
    # The same file system may be mounted from several restore points at once.
    "xfs": _HowToMount("xfs", ("nouuid",)),
    "btrfs": _HowToMount("btrfs", ("subvolid=5",)),
    "vfat": _HowToMount("vfat", ("utf8",)),
    "exfat": _HowToMount("exfat"),
    "ntfs": _HowToMount("ntfs-3g"),
    "iso9660": _HowToMount("iso9660"),
    "udf": _HowToMount("udf"),
}
_UNSUPPORTED = {
    "LVM2_member": "an LVM physical volume, which the kernel back end does not open",
    "crypto_LUKS": "encrypted with LUKS",
    "linux_raid_member": "a member of a Linux software RAID, which the kernel back end does not open",
    "swap": "swap space, which holds no files",
    "BitLocker": "encrypted with BitLocker",
    "": "no file system was recognised",
}


class KernelBackend:
    """Mounts with the host's kernel; needs root, /dev/fuse and loop devices.

    Args:
        mount_timeout: Seconds that one file system may take.
    """

    def __init__(self, mount_timeout: float) -> None:
        self._mount_timeout = mount_timeout
        self._daemons: dict[str, StorageDaemon] = {}

    @property
    def name(self) -> str:
        """`kernel`."""
        return "kernel"

    async def mount(self, backup_id: str, disks: Sequence[Disk], place: Place) -> Tree:
        """Mounts all disks of a point, see `backend.Backend`."""
        if os.geteuid() != 0:
            raise MountFailed(backup_id, "kernel mounts need root", help="Run the restore service as root.")
        try:
            return await self._mount(backup_id, disks, place)
        except BaseException as error:
            # Also on cancellation: nothing half-made stays.
            await asyncio.shield(asyncio.ensure_future(self._roll_back(place)))
            if isinstance(error, QemuError | ProgramError | OSError):
                raise MountFailed(backup_id, str(error)) from error
            raise

    async def _roll_back(self, place: Place) -> None:
        try:
            await self.unmount(place)
        except TeardownError:
            log.exception("a failed mount is not undone; the next start of the service tries again")

    async def _mount(self, backup_id: str, disks: Sequence[Disk], place: Place) -> Tree:
        await asyncio.to_thread(place.make)

        def started(daemon: StorageDaemon) -> None:
            self._daemons[place.mount_id] = daemon

        await export_disks(disks, place, started)
        probed = await all_or_nothing(_probe(disk.disk_id, place.image(disk.disk_id)) for disk in disks)
        room = asyncio.Semaphore(_PARALLEL_MOUNTS)
        volumes = await all_or_nothing(self._mount_volume(v, place, room) for found in probed for v in found)
        roots = {volume.name: place.volumes / volume.name for volume in volumes if not volume.error}
        if not roots:
            raise NoFileSystem(backup_id, [f"{volume.name}: {volume.error}" for volume in volumes])
        volumes = await compose(place.root, volumes, roots)
        return Tree(
            root=place.root,
            volumes=tuple(volumes),
            volume_roots=roots,
            operating_system=await asyncio.to_thread(read_operating_system, place.root),
            lost=self._daemons[place.mount_id].gone,
        )

    async def _mount_volume(self, volume: Volume, place: Place, room: asyncio.Semaphore) -> Volume:
        if volume.error:
            return volume
        how = _FILE_SYSTEMS.get(volume.file_system)
        if how is None:
            what = _UNSUPPORTED.get(volume.file_system, f"{volume.file_system}, which is not supported")
            return replace(volume, error=what)
        directory = place.volumes / volume.name
        async with room:
            await asyncio.to_thread(directory.mkdir, mode=0o700)
            device = await loops.attach(place.image(volume.disk_id), volume.offset_bytes, volume.size_bytes)
            try:
                await mount_table.mount_device(
                    device, directory, how.kernel_type, how.options, deadline=self._mount_timeout
                )
                problem = await asyncio.to_thread(_wrong_device, directory, device, volume.file_system)
            except ProgramError as error:
                problem = error.output.removeprefix(f"mount: {directory}: ")
            if problem:
                log.warning("a volume cannot be mounted", mount_id=place.mount_id, volume=volume.name, why=problem)
                await mount_table.unmount(directory)
                await loops.detach(device)
                return replace(volume, error=problem)
        return volume

    async def users(self, place: Place) -> list[str]:
        """Returns the processes of this host that use the mount."""
        return await asyncio.to_thread(holders, [place.root, place.volumes])

    async def unmount(self, place: Place) -> None:
        """Undoes a mount or what there is of one, see `backend.Backend`."""
        await tear_down(place, self._daemons.get(place.mount_id))
        self._daemons.pop(place.mount_id, None)


async def _probe(disk_id: int, image: Path) -> list[Volume]:
    status = await asyncio.to_thread(image.stat)
    return await probe_disk(disk_id, image, status.st_size)


def _wrong_device(directory: Path, device: str, file_system: str) -> str:
    """Says whether the kernel mounted another device than ours; Btrfs before 6.7 does so for a second clone."""
    for entry in mount_table.mounts_below(directory):
        if file_system == "btrfs" and entry.source != device:
            return f"the kernel took {entry.source} for it: a Btrfs of the same uuid is mounted already"
    return ""
