"""The job's snapshot: made or joined, found again by what its description says, removed only when it is ours."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Any

import structlog
from pyVmomi import vim, vmodl

from sendense_agent.disks import disks_of
from sendense_agent.errors import ConsolidationNeeded, DiskNotFound, SnapshotNotFound, SnapshotNotOurs, StaleAttempt
from sendense_agent.inventory import find_vm, walk_snapshots
from sendense_agent.model import Disk, Holder, Snapshot, VmRef
from sendense_agent.properties import moref_of, read_some
from sendense_agent.tasks import TaskFailed, wait_for_task
from sendense_agent.vcenter import VCenter

log = structlog.get_logger()

NAME_PREFIX = "sendense-"
MAX_NAME = 80
"""vSphere's limit for a snapshot's name."""
CREATE_SECONDS = 900.0
REMOVE_SECONDS = 24 * 3600.0
"""Merging hours of a busy VM's writes takes hours; the caller's deadline ends the wait earlier."""

_QUIESCE_FAULTS = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable)


def snapshot_name(job_id: str) -> str:
    """Returns the name of a job's snapshot; a long job id is cut, with a hash of the whole."""
    name = NAME_PREFIX + job_id
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 13]}-{hashlib.sha256(job_id.encode()).hexdigest()[:12]}"


def describe(holder: Holder) -> str:
    """Returns the description by which a snapshot is known as ours."""
    return json.dumps(
        {"installation": holder.installation_id, "job": holder.job_id, "attempt": holder.attempt}, sort_keys=True
    )


def attempt_of(description: str, holder: Holder) -> int | None:
    """Returns the attempt that made a snapshot of this installation and job; None when it is not theirs."""
    try:
        facts = json.loads(description)
    except json.JSONDecodeError:
        return None
    if not isinstance(facts, dict):
        return None
    if (facts.get("installation"), facts.get("job")) != (holder.installation_id, holder.job_id):
        return None
    attempt = facts.get("attempt")
    return attempt if isinstance(attempt, int) else None


async def create_snapshot(vcenter: VCenter, ref: VmRef, holder: Holder, *, quiesce: bool) -> Snapshot:
    """Makes the job's snapshot of all disks, without memory, or joins the one that the job has.

    With `quiesce` the guest is asked to make its file systems consistent; when it cannot, the snapshot is
    crash-consistent (cbt-facts 9).

    Raises:
        StaleAttempt: A newer attempt made the snapshot that the job has.
        VCenterFault: vCenter refused.
    """
    existing = await vcenter.read("look for the job's snapshot", lambda service: _ours(service, ref, holder))
    if not existing:
        try:
            await _make(vcenter, ref, holder, quiesce=quiesce)
        except TaskFailed as failed:
            if not quiesce or not isinstance(failed.fault, _QUIESCE_FAULTS):
                raise
            log.warning("the guest could not quiesce, taking a crash-consistent snapshot", fault=str(failed))
            await _make(vcenter, ref, holder, quiesce=False)
        existing = await vcenter.read("look for the job's snapshot", lambda service: _ours(service, ref, holder))
    if not existing:
        raise SnapshotNotFound(snapshot_name(holder.job_id))
    node = existing[0]
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


async def _make(vcenter: VCenter, ref: VmRef, holder: Holder, *, quiesce: bool) -> None:
    def start(service: Any) -> str:
        task = find_vm(service, ref).CreateSnapshot_Task(
            name=snapshot_name(holder.job_id), description=describe(holder), memory=False, quiesce=quiesce
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


def _ours(service: Any, ref: VmRef, holder: Holder) -> list[Any]:
    """Returns the tree nodes of the job's snapshots, parents first."""
    nodes = walk_snapshots(find_vm(service, ref).snapshot)
    return [node for node in nodes if attempt_of(node.description, holder) is not None]
