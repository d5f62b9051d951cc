"""A restore point's disks as raw files: a throw-away overlay on each layer, all served by one storage daemon over FUSE.

The layers are opened read-only, one by one and by name; writes (journal replay) go into the overlays.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from sendense_qemu import img
from sendense_qemu.fuse import OVERLAY_CLUSTER_SIZE
from sendense_qemu.header import check_chain
from sendense_qemu.nodes import file_access, qcow2_node
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_restore.backend import Disk
from sendense_restore.concurrency import all_or_nothing
from sendense_restore.places import Place

_MAX_L1_ENTRIES = (32 << 20) // 8
"""qemu's limit for a qcow2 L1 table is 32 MiB."""


async def export_disks(disks: Sequence[Disk], place: Place, on_start: Callable[[StorageDaemon], None]) -> None:
    """Serves each disk as `place.image(disk_id)`.

    Args:
        disks: The disks.
        place: The mount's paths; its directories exist.
        on_start: Told of the daemon as soon as it runs, whatever happens after.

    Raises:
        HeaderError: A layer's header is not one that we let qemu open.
        QemuImgError: An overlay cannot be made.
        StorageDaemonError: The daemon does not start, or refuses a disk.
        OSError: A layer cannot be read.
    """
    chains = await all_or_nothing(_prepare(disk, place) for disk in disks)
    daemon = await StorageDaemon.start(place.qmp_socket, log_path=place.daemon_log, die_with_parent=True)
    on_start(daemon)
    await asyncio.to_thread(place.record_process, "daemon", daemon.pid)
    for disk, chain in zip(disks, chains, strict=True):
        node = f"disk-{disk.disk_id}"
        access = await asyncio.to_thread(file_access, chain[0], daemon.aio)
        await daemon.add_node(qcow2_node(node, chain, access, read_only=False, discard="unmap"))
        image = place.image(disk.disk_id)
        await asyncio.to_thread(image.touch)
        await daemon.add_fuse_export(f"export-{disk.disk_id}", node, image, writable=True)


async def _prepare(disk: Disk, place: Place) -> list[Path]:
    """Judges a layer's chain and lays an overlay on it; returns the files from the overlay down to the full."""
    layer = await asyncio.to_thread(disk.layer.resolve)
    headers = await asyncio.to_thread(check_chain, layer, [layer.parent])
    size = headers[0].virtual_size
    backing_name = await asyncio.to_thread(os.path.relpath, layer, place.work)
    overlay = place.overlay(disk.disk_id)
    await img.create_qcow2(
        overlay,
        size,
        backing_name=backing_name,
        backing_format="qcow2",
        cluster_size=overlay_cluster_size(size),
    )
    overlay.chmod(0o600)
    return [overlay, *(header.path for header in headers)]


def overlay_cluster_size(virtual_size: int) -> int:
    """Returns the smallest cluster, from a file system's block on, with which qcow2 can hold so large a disk."""
    cluster = OVERLAY_CLUSTER_SIZE
    while virtual_size > _MAX_L1_ENTRIES * cluster * (cluster // 8):
        cluster *= 2
    return cluster
