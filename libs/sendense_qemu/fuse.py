"""A qcow2 image as a raw file: one qemu-storage-daemon with one FUSE export, for loop devices and plain readers.

What always holds: the daemon dies with the thread that started it, so no image stays open by accident; then the
mount point is a dead one, which `clear_mountpoint` takes away.

Holes. qemu turns a hole punched into the FUSE file (a loop device does so for discards and for most requests
to write zeroes) into a discard, and a discard zeroes only whole clusters of an image that has layers below: in
the rest the old content shows (tried, qemu 7.2, clusters of 64 KiB). So the overlay that is mounted for writing
should be made with clusters no larger than the file system's blocks: `OVERLAY_CLUSTER_SIZE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from sendense_qemu.errors import StorageDaemonError
from sendense_qemu.nodes import Discard, file_access, qcow2_node, supports_direct_io
from sendense_qemu.storage_daemon import StorageDaemon

OVERLAY_CLUSTER_SIZE: Final = 4096
"""Bytes of a cluster of a writable overlay that a loop device is put on; good for images up to 8 TiB."""

_NODE = "image"
_EXPORT = "fuse"
_UNMOUNT_SECONDS = 10.0


class FuseFile:
    """An image that is served as a raw file; made by `serve`.

    Attributes:
        mountpoint: The file that shows the image's content.
        daemon: The process that serves it; its `gone` tells of its death.
    """

    def __init__(self, mountpoint: Path, daemon: StorageDaemon) -> None:
        self.mountpoint = mountpoint
        self.daemon = daemon

    @classmethod
    async def serve(
        cls,
        chain: Sequence[Path],
        mountpoint: Path,
        *,
        writable: bool,
        run_dir: Path,
        discard: Discard = "unmap",
    ) -> Self:
        """Serves a qcow2 image, its layers named one by one, as a raw file.

        Args:
            chain: The image, then each layer below it down to the full (`sendense_qemu.header.check_chain`).
            mountpoint: The file to cover; made when it is not there.
            writable: Whether writes go into the image.
            run_dir: Existing folder with a short path, for the daemon's QMP socket and log.
            discard: What a punched hole does, see this module's text.

        Raises:
            StorageDaemonError: An image is locked or unreadable, or FUSE is missing.
            OSError: An image or the mount point cannot be looked at.
        """
        for path in chain:
            await asyncio.to_thread(supports_direct_io, path)  # says which file is missing, by its name
        await asyncio.to_thread(mountpoint.touch, exist_ok=True)
        name = _short_name(mountpoint)
        daemon = await StorageDaemon.start(
            run_dir / f"fuse-{name}.qmp", log_path=run_dir / f"fuse-{name}.log", die_with_parent=True
        )
        try:
            access = await asyncio.to_thread(file_access, chain[0], daemon.aio)
            await daemon.add_node(qcow2_node(_NODE, chain, access, read_only=not writable, discard=discard))
            await daemon.add_fuse_export(_EXPORT, _NODE, _absolute(mountpoint), writable=writable)
        except BaseException:
            await asyncio.shield(daemon.stop())
            raise
        return cls(mountpoint, daemon)

    async def close(self) -> None:
        """Takes the file away and flushes the image; loop devices on it must be gone.

        Raises:
            StorageDaemonError: The daemon does not end.
        """
        with contextlib.suppress(StorageDaemonError):  # stopping closes it as well
            await self.daemon.remove_export(_EXPORT, mode="hard")
        await self.daemon.stop()
        await clear_mountpoint(self.mountpoint)


async def clear_mountpoint(mountpoint: Path) -> None:
    """Takes away what a daemon that was killed left mounted; no error when there is nothing.

    Args:
        mountpoint: A file that was given to `FuseFile.serve`.

    Raises:
        StorageDaemonError: Something is still mounted there.
    """
    if not await asyncio.to_thread(_is_mounted, mountpoint):
        return
    process = await asyncio.create_subprocess_exec(
        "fusermount3",
        "-u",
        "-z",
        "--",
        str(_absolute(mountpoint)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_UNMOUNT_SECONDS):
            _, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0 and await asyncio.to_thread(_is_mounted, mountpoint):
        raise StorageDaemonError("unmount", stderr.decode("utf-8", "replace").strip())


def _absolute(path: Path) -> Path:
    return path.absolute()


def _short_name(mountpoint: Path) -> str:
    """A name of its own for each mount point, short enough for a socket's address."""
    return hashlib.blake2b(os.fsencode(_absolute(mountpoint)), digest_size=6).hexdigest()


def _is_mounted(mountpoint: Path) -> bool:
    """Looks into the mount table: a dead FUSE mount answers no stat(2)."""
    wanted = str(_absolute(mountpoint))
    for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
        place = line.split(" ")[1]
        for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            place = place.replace(code, char)
        if place == wanted:
            return True
    return False
