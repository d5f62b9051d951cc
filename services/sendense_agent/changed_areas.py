"""Asks vCenter which areas of a disk changed, completely, and never believes an answer that cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from pyVmomi import vim, vmodl

from sendense_agent.errors import AreasQueryFailed, ChangeTrackingReset, SnapshotNotFound
from sendense_agent.inventory import find_vm
from sendense_agent.model import Disk, VmRef
from sendense_agent.snapshots import snapshot_disk
from sendense_blockio.errors import ExtentError
from sendense_blockio.extents import Extent, normalize

log = structlog.get_logger()

ALLOCATED = "*"
"""The change id that stands for everything allocated (cbt-facts 5)."""


def areas_of(service: Any, ref: VmRef, snapshot_moref: str, device_key: int, parent: str) -> tuple[Disk, list[Extent]]:
    """Returns a snapshot's disk and its areas: changed since `parent`, or without one all that is allocated.

    Args:
        service: pyVmomi's service instance.
        ref: The VM.
        snapshot_moref: The snapshot.
        device_key: The disk.
        parent: Change id of the parent layer; empty for a full.

    Raises:
        ChangeTrackingReset: The parent's change id is of another epoch.
        AreasQueryFailed: vCenter faulted, or answered what cannot be.
        SnapshotNotFound: The snapshot is gone.
        DiskNotFound: It has no such disk.
    """
    disk = snapshot_disk(service, snapshot_moref, device_key)
    if parent:
        require_same_epoch(disk, parent)
        return disk, _query(service, ref, snapshot_moref, disk, parent)
    if not disk.change_id:
        log.info("change tracking is off: the whole disk is planned", disk=str(disk))
        return disk, [Extent(0, disk.capacity_bytes)]
    try:
        return disk, _query(service, ref, snapshot_moref, disk, ALLOCATED)
    except AreasQueryFailed as error:
        log.warning("allocated areas are not known: the whole disk is planned", disk=str(disk), error=str(error))
        return disk, [Extent(0, disk.capacity_bytes)]


def require_same_epoch(disk: Disk, parent: str) -> None:
    """Raises unless a parent's change id is of the epoch of the disk's own (cbt-facts 2 and 3).

    Raises:
        ChangeTrackingReset: It is not, or the snapshot has none.
    """
    epoch, separator, sequence = parent.rpartition("/")
    current, _, newest = disk.change_id.rpartition("/")
    if not separator or not epoch or not sequence or epoch != current:
        raise ChangeTrackingReset(str(disk), parent, disk.change_id)
    # A storage array that went back to a copy of its own takes the count back with the disk.
    if sequence.isdecimal() and newest.isdecimal() and int(sequence) > int(newest):
        raise ChangeTrackingReset(str(disk), parent, disk.change_id)


def _query(service: Any, ref: VmRef, snapshot_moref: str, disk: Disk, change_id: str) -> list[Extent]:
    vm = find_vm(service, ref)
    snapshot = vim.vm.Snapshot(snapshot_moref, service._stub)  # noqa: SLF001  # how pyVmomi objects are made from an id

    def ask(start: int) -> Any:
        return vm.QueryChangedDiskAreas(
            snapshot=snapshot, deviceKey=disk.device_key, startOffset=start, changeId=change_id
        )

    try:
        return all_pages(ask, disk)
    except vmodl.fault.ManagedObjectNotFound as error:
        raise SnapshotNotFound(snapshot_moref) from error
    except vim.fault.NotAuthenticated:
        raise
    except vmodl.MethodFault as fault:
        raise AreasQueryFailed(str(disk), f"{type(fault).__name__}: {fault.msg}") from fault


def all_pages(ask: Callable[[int], Any], disk: Disk) -> list[Extent]:
    """Asks for page after page, up to the disk's capacity and never at it (cbt-facts 1).

    Args:
        ask: Asks for the page that begins at an offset and returns vim's DiskChangeInfo.
        disk: The disk.

    Raises:
        AreasQueryFailed: A page is empty of length, begins elsewhere than asked, ends behind the disk, or names areas
            outside of itself or overlapping ones.
    """
    capacity, start = disk.capacity_bytes, 0
    areas: list[Extent] = []
    while start < capacity:
        page = ask(start)
        if page.startOffset != start:
            raise AreasQueryFailed(str(disk), f"asked from {start}, answered from {page.startOffset}")
        if page.length <= 0 or start + page.length > capacity:
            raise AreasQueryFailed(str(disk), f"a page at {start} of length {page.length}, the disk has {capacity}")
        end = start + page.length
        for area in page.changedArea or []:
            if area.start < start or area.length <= 0 or area.start + area.length > end:
                raise AreasQueryFailed(
                    str(disk), f"the page {start} to {end} names the area {area.start}, length {area.length}"
                )
            areas.append(Extent(int(area.start), int(area.length)))
        start = end
    try:
        return normalize(areas, capacity)
    except ExtentError as error:
        raise AreasQueryFailed(str(disk), str(error)) from error
