"""The job's snapshot: made or joined, found again by what its description says, removed only when it is ours."""

from __future__ import annotations

import datetime as dt
from typing import Any

import structlog
from pyVmomi import vim, vmodl

from sendense_agent.disks import disks_of
from sendense_agent.errors import ConsolidationNeeded, DiskNotFound, SnapshotNotFound, SnapshotNotOurs, StaleAttempt
from sendense_agent.event_log import first_snapshot_mark, newest_mark
from sendense_agent.inventory import find_vm, walk_snapshots
from sendense_agent.labels import attempt_of, describe, label_of, snapshot_name
from sendense_agent.model import Disk, Holder, Mark, Snapshot, VmRef
from sendense_agent.properties import moref_of, read_some
from sendense_agent.tasks import TaskFailed, wait_for_task
from sendense_agent.vcenter import VCenter

log = structlog.get_logger()

CREATE_SECONDS = 900.0
REMOVE_SECONDS = 24 * 3600.0
"""Merging hours of a busy VM's writes takes hours; the caller's deadline ends the wait earlier."""

_QUIESCE_FAULTS = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable)


async def create_snapshot(vcenter: VCenter, ref: VmRef, holder: Holder, *, quiesce: bool) -> Snapshot:
    """Makes the job's snapshot of all disks, without memory, or joins the one that the job has.

    With `quiesce` the guest is asked to make its file systems consistent; when it cannot, the snapshot is
    crash-consistent (cbt-facts 9).

    Raises:
        StaleAttempt: A newer attempt made the snapshot that the job has.
        VCenterFault: vCenter refused.
    """
    existing, alone = await _state(vcenter, ref, holder)
    mark, problem = None, ""
    if not existing:
        before = await newest_mark(vcenter, ref)
        problem = await _make(vcenter, ref, holder, before, quiesce=quiesce)
        existing, alone = await _state(vcenter, ref, holder)
        mark = before or await first_snapshot_mark(vcenter, ref)
    if not existing:
        raise SnapshotNotFound(snapshot_name(holder.job_id))
    node = existing[0]
    label = label_of(node.description)
    mark = mark or (label.mark if label else None)
    made_by = attempt_of(node.description, holder) or 0
    if made_by > holder.attempt:
        raise StaleAttempt(holder.job_id, holder.attempt, made_by)
    moref = moref_of(node.snapshot)
    disks = await vcenter.read("read the snapshot's disks", lambda service: snapshot_disks(service, moref))
    return Snapshot(
        moref=moref,
        name=str(node.name),
        created_at=node.createTime.astimezone(dt.UTC),
        quiesced=bool(node.quiesced),
        disks=disks,
        quiesce_problem=problem,
        alone=alone,
        event_mark=str(mark) if mark else "",
    )


async def remove_snapshot(vcenter: VCenter, ref: VmRef, holder: Holder, moref: str) -> list[str]:
    """Removes the job's snapshot and waits until its disks are merged. What is gone is no error.

    Args:
        vcenter: Where.
        ref: The VM.
        holder: Who made it.
        moref: The snapshot as recorded; empty for every snapshot of that job and installation.

    Returns:
        What was removed.

    Raises:
        SnapshotNotOurs: It was not made by this installation and job; nothing was done.
        ConsolidationNeeded: Its disks could not be merged.
        VCenterFault: vCenter refused.
    """

    def find(service: Any) -> list[str]:
        nodes = list(walk_snapshots(find_vm(service, ref).snapshot))
        if not moref:
            return [moref_of(node.snapshot) for node in nodes if attempt_of(node.description, holder) is not None]
        for node in nodes:
            if moref_of(node.snapshot) == moref:
                if attempt_of(node.description, holder) is None:
                    raise SnapshotNotOurs(moref, str(node.name))
                return [moref]
        return []

    found = await vcenter.read("look for the snapshot", find)
    removed = [each for each in reversed(found) if await _remove_one(vcenter, each)]
    await _consolidate(vcenter, ref)
    return removed


def snapshot_disks(service: Any, moref: str) -> tuple[Disk, ...]:
    """Returns the disks of a snapshot, with their change ids.

    Raises:
        SnapshotNotFound: It is gone.
    """
    snapshot = vim.vm.Snapshot(moref, service._stub)  # noqa: SLF001  # how pyVmomi objects are made from an id
    try:
        properties = read_some(service, [snapshot], ["config.hardware.device"]).get(moref)
    except vmodl.fault.ManagedObjectNotFound as error:
        raise SnapshotNotFound(moref) from error
    if not properties:
        raise SnapshotNotFound(moref)
    return disks_of(properties["config.hardware.device"])


def snapshot_disk(service: Any, moref: str, device_key: int) -> Disk:
    """Returns one disk of a snapshot.

    Raises:
        SnapshotNotFound: The snapshot is gone.
        DiskNotFound: It has no such disk.
    """
    for disk in snapshot_disks(service, moref):
        if disk.device_key == device_key:
            return disk
    raise DiskNotFound(moref, device_key)


async def _make(vcenter: VCenter, ref: VmRef, holder: Holder, mark: Mark | None, *, quiesce: bool) -> str:
    """Makes the snapshot; returns why it is not quiesced although that was asked for."""
    try:
        await _make_one(vcenter, ref, holder, mark, quiesce=quiesce)
    except TaskFailed as failed:
        if not quiesce or not isinstance(failed.fault, _QUIESCE_FAULTS):
            raise
        log.warning("the guest could not quiesce, taking a crash-consistent snapshot", fault=str(failed))
        await _make_one(vcenter, ref, holder, mark, quiesce=False)
        return f"{type(failed.fault).__name__.rpartition('.')[2]}: {failed.fault.msg or 'no message'}"
    return ""


async def _make_one(vcenter: VCenter, ref: VmRef, holder: Holder, mark: Mark | None, *, quiesce: bool) -> None:
    def start(service: Any) -> str:
        task = find_vm(service, ref).CreateSnapshot_Task(
            name=snapshot_name(holder.job_id), description=describe(holder, mark), memory=False, quiesce=quiesce
        )
        return moref_of(task)

    task = await vcenter.change("make a snapshot", start)
    await wait_for_task(vcenter, task, "make a snapshot", CREATE_SECONDS)


async def _remove_one(vcenter: VCenter, moref: str) -> bool:
    """Removes a snapshot; returns False when it was gone already."""

    def start(service: Any) -> str:
        snapshot = vim.vm.Snapshot(moref, service._stub)  # noqa: SLF001
        try:
            return moref_of(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))
        except vmodl.fault.ManagedObjectNotFound:
            return ""

    task = await vcenter.change("remove a snapshot", start)
    if task:
        await wait_for_task(vcenter, task, "remove a snapshot", REMOVE_SECONDS)
    return bool(task)


async def _consolidate(vcenter: VCenter, ref: VmRef) -> None:
    """Merges disks that a removal left unmerged, once (cbt-facts 10a)."""
    if not await vcenter.read("look at consolidation", lambda service: _consolidation_needed(service, ref)):
        return
    log.warning("the VM's disks need consolidation", vm=ref.vm_uuid)
    task = await vcenter.change(
        "consolidate disks", lambda service: moref_of(find_vm(service, ref).ConsolidateVMDisks_Task())
    )
    await wait_for_task(vcenter, task, "consolidate disks", REMOVE_SECONDS)
    if await vcenter.read("look at consolidation", lambda service: _consolidation_needed(service, ref)):
        raise ConsolidationNeeded(ref.vm_uuid)


def _consolidation_needed(service: Any, ref: VmRef) -> bool:
    return bool(find_vm(service, ref).runtime.consolidationNeeded)


async def _state(vcenter: VCenter, ref: VmRef, holder: Holder) -> tuple[list[Any], bool]:
    return await vcenter.read("look for the job's snapshot", lambda service: _ours(service, ref, holder))


def _ours(service: Any, ref: VmRef, holder: Holder) -> tuple[list[Any], bool]:
    """Returns the tree nodes of the job's snapshots, parents first, and whether the VM has this one and no other.

    It is not alone either when the VM does not stand on it: then somebody has reverted the VM since it was made, and
    may have removed the snapshot that it was reverted to.
    """
    info = find_vm(service, ref).snapshot
    nodes = list(walk_snapshots(info))
    ours = [node for node in nodes if attempt_of(node.description, holder) is not None]
    if len(nodes) != 1 or not ours:
        return ours, False
    current = info.currentSnapshot
    return ours, current is not None and moref_of(current) == moref_of(ours[0].snapshot)
