"""The kernel back end: loop devices on the exported disks' partitions, mounted by the host's kernel.

The kernel parses the guest's file systems here: only types on a short list reach it, always read-only for the
user, with the journal replayed into the overlay first. What needs more (LVM, LUKS, md) carries its reason.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sendense_restore import loops, mount_table
from sendense_restore.backend import BackendError, Opened
from sendense_restore.concurrency import all_or_nothing
from sendense_restore.places import Place
from sendense_restore.programs import ProgramError
from sendense_restore.teardown import settles
from sendense_restore.volume import Volume

log = structlog.get_logger()

_PARALLEL_MOUNTS = 4
_LOOP_SECONDS = 2.0
"""Below a tree that was cut off, a loop device stays until its user ends, and then goes by itself."""


@dataclass(frozen=True, slots=True)
class _HowToMount:
    """The kernel's (or a helper's) name of a file system, and options besides the safe ones."""

    kernel_type: str
    options: tuple[str, ...] = ()


_FILE_SYSTEMS = {
    # A superblock may ask the kernel to panic at the first error that it meets: a wish that is not the host's.
    "ext2": _HowToMount("ext4", ("errors=remount-ro",)),
    "ext3": _HowToMount("ext4", ("errors=remount-ro",)),
    "ext4": _HowToMount("ext4", ("errors=remount-ro",)),
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
    """Mounts with the host's kernel; needs root and loop devices.

    Args:
        mount_timeout: Seconds that one file system may take.
    """

    def __init__(self, mount_timeout: float) -> None:
        self._mount_timeout = mount_timeout

    @property
    def name(self) -> str:
        """`kernel`."""
        return "kernel"

    async def open(self, volumes: Sequence[Volume], place: Place, passphrases: Sequence[str]) -> Opened:
        """Mounts what the kernel can mount, see `backend.Backend`."""
        del passphrases  # it opens nothing that is encrypted
        if os.geteuid() != 0:
            raise BackendError("kernel mounts need root", "Run the restore service as root.")
        room = asyncio.Semaphore(_PARALLEL_MOUNTS)
        mounted = await all_or_nothing(self._mount_volume(volume, place, room) for volume in volumes)
        roots = {volume.name: place.volumes / volume.name for volume in mounted if not volume.error}
        return Opened(tuple(mounted), roots)

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

    async def close(self, place: Place) -> None:
        """Frees the loop devices, see `backend.Backend`."""
        for device in await asyncio.to_thread(loops.attached_below, place.work):
            await loops.detach(device)
        if not await settles(lambda: not loops.attached_below(place.work), _LOOP_SECONDS):
            log.warning("a loop device stays until its last user lets go", mount_id=place.mount_id)


async def kernel_refuses(file_system: str) -> str:
    """Says why the kernel back end cannot mount a type of file system here; empty when it can.

    Args:
        file_system: blkid's word.
    """
    how = _FILE_SYSTEMS.get(file_system)
    if how is None:
        return _UNSUPPORTED.get(file_system, f"{file_system}, which the kernel back end does not open")
    if how.kernel_type == "ntfs-3g":
        return "" if shutil.which("mount.ntfs-3g") else "NTFS, and ntfs-3g is not installed"
    known = await asyncio.to_thread(Path("/proc/filesystems").read_text)
    if how.kernel_type in known.split():
        return ""
    try:
        await mount_table.find_module(how.kernel_type)
    except ProgramError:
        return f"{file_system}, which this host's kernel does not know"
    return ""


def _wrong_device(directory: Path, device: str, file_system: str) -> str:
    """Says whether the kernel mounted another device than ours; Btrfs before 6.7 does so for a second clone."""
    for entry in mount_table.mounts_below(directory):
        if file_system == "btrfs" and entry.source != device:
            return f"the kernel took {entry.source} for it: a Btrfs of the same uuid is mounted already"
    return ""
