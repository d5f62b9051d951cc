"""Copies areas from one chain of images into another image: one qemu-storage-daemon and the copy engine."""

from __future__ import annotations

import asyncio
import shutil
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from sendense_blockio.engine import CopyOptions, CopyProgress, Endpoint, copy
from sendense_blockio.extents import Extent
from sendense_qemu.nodes import file_access, qcow2_node
from sendense_qemu.storage_daemon import StorageDaemon

_SOURCE, _TARGET = "source", "target"


async def copy_areas(
    source: Sequence[Path],
    target: Sequence[Path],
    areas: Sequence[Extent],
    *,
    fresh: bool,
    virtual_size: int,
    work_dir: Path,
    progress: CopyProgress,
    cancel: threading.Event,
) -> None:
    """Writes what a chain gives in some areas into an image, and flushes it.

    Args:
        source: An image and each layer below it; headers were judged.
        target: The image to write and each layer below it.
        areas: What to copy, in whole clusters.
        fresh: The target is a full that was never written: zeroes may be left out.
        virtual_size: Bytes of both disks.
        work_dir: Existing folder with a short path, for the daemon's sockets; a folder is made in it and removed.
        progress: Counters to keep.
        cancel: Set by anybody to end the copy at the next chunk.

    Raises:
        StorageDaemonError: An image cannot be opened, or is locked.
        CopyError: Reading, writing or flushing failed.
        CopyCancelledError: `cancel` was set.
    """
    place = work_dir / uuid.uuid4().hex[:8]
    await asyncio.to_thread(place.mkdir, mode=0o700, parents=True)
    try:
        daemon = await StorageDaemon.start(place / "q", log_path=place / "log", die_with_parent=True)
        try:
            for name, chain, read_only in ((_SOURCE, source, True), (_TARGET, target, False)):
                access = await asyncio.to_thread(file_access, chain[0], daemon.aio)
                await daemon.add_node(qcow2_node(name, chain, access, read_only=read_only))
            socket = place / "n"
            await daemon.serve_nbd(socket)
            for name in (_SOURCE, _TARGET):
                await daemon.add_nbd_export(name, name, name, writable=name == _TARGET)
            await _copy(socket, areas, fresh=fresh, virtual_size=virtual_size, progress=progress, cancel=cancel)
        finally:
            await asyncio.shield(daemon.stop())
    finally:
        await asyncio.to_thread(shutil.rmtree, place)


async def _copy(
    socket: Path,
    areas: Sequence[Extent],
    *,
    fresh: bool,
    virtual_size: int,
    progress: CopyProgress,
    cancel: threading.Event,
) -> None:
    work = asyncio.ensure_future(
        asyncio.to_thread(
            copy,
            Endpoint.unix(socket, _SOURCE, read_only=True),
            Endpoint.unix(socket, _TARGET),
            areas,
            CopyOptions(zeroes="skip" if fresh else "write", source_holes=True),
            lambda _: None,
            progress,
            cancel,
            capacity=virtual_size,
        )
    )
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread must have let go of the image before anybody removes it.
        cancel.set()
        await asyncio.gather(work, return_exceptions=True)
        raise
