"""The steps that decide about a disk, make its layer, fix what is to be copied, and seal it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sendense_backup.clients.agents import PlanEnd
from sendense_backup.clients.repository import Areas, NewLayer
from sendense_backup.decisions import (
    TURNS_FULL,
    Decision,
    FullReason,
    after_look,
    decide,
    full,
    job_type,
    of_one_vcenter,
    snapshot_facts,
)
from sendense_backup.errors import CannotBackUp, LostSnapshot
from sendense_backup.model import COMPLETED, INCREMENTAL, PENDING, RUNNING, SKIPPED, Disk, JobDisk, Point
from sendense_backup.store import leases
from sendense_backup.workflows.durable import Outcome
from sendense_backup.workflows.runtime import Work
from sendense_rpc.errors import Kind, RemoteError, SendenseError

AREAS_FIXED = "AREAS_FIXED"
LAYER_DAMAGED = "LAYER_DAMAGED"


async def decide_disk(work: Work, position: int) -> Outcome:
    """Decides whether a disk is read fully or incrementally, and records why."""
    job = await work.job()
    row = job.disks[position]
    latest = await work.runtime.patiently(
        lambda: work.runtime.repository.latest_point(job.repository_id, job.ref.vm_uuid)
    )
    disk = Disk(row.device_key, row.identity, row.label, row.capacity_bytes, row.change_id)
    decision = decide(disk, job.requested_type, latest)
    if decision.parent is not None and latest is not None:
        decision = await _rule_out_a_revert(work, row, decision, latest)
    parent = decision.parent
    await work.set_disk(
        position,
        status=RUNNING,
        backup_type=decision.backup_type,
        reason=decision.reason,
        parent_backup_id=latest.backup_id if latest and parent else "",
        parent_layer_id=parent.layer_id if parent else "",
        parent_change_id=parent.change_id if parent else "",
    )
    await _record_type(work)
    await work.log(
        "info",
        "decide",
        f"{row.label}: {decision.backup_type}, {decision.reason}",
        backup_type=decision.backup_type,
        reason=decision.reason,
        position=position,
    )
    return {}


async def _rule_out_a_revert(work: Work, row: JobDisk, decision: Decision, latest: Point) -> Decision:
    """Returns the decision for an increment, or for a full when the VM was, or may have been, reverted since."""
    job = await work.job()
    _, hardware_json = await work.catalogue.running.facts_for_point(work.backup_id)
    parent, own = snapshot_facts(latest.hardware_json), snapshot_facts(hardware_json)
    decision = of_one_vcenter(decision, parent, job.ref.vcenter_uuid)
    if decision.parent is None:
        return decision
    agent = await work.agent()
    look = await work.runtime.patiently(lambda: agent.look_for_revert(job.ref, parent.event_mark, own.event_mark))
    decided = after_look(decision, parent, look)
    if decided.parent is None:
        await work.log(
            "warning",
            "decide",
            f"{row.label}: {decided.reason}: {look.detail or look.finding}; the increment becomes a full",
            finding=look.finding,
            parent_alone=parent.alone,
            position=row.position,
        )
    return decided


async def make_layer(work: Work, position: int) -> Outcome:
    """Makes the disk's layer, or joins the one that the job has; an increment on a damaged layer becomes a full."""
    try:
        layer = await join_layer(work, position)
    except RemoteError as error:
        row = await work.catalogue.running.disk(work.backup_id, position)
        if error.reason != LAYER_DAMAGED or not row.parent_layer_id:
            raise
        if error.metadata.get("layer_id") != row.parent_layer_id:
            raise
        decision = full(FullReason.PARENT_DAMAGED)
        await _become_full(work, position, decision)
        await work.log("warning", "layer", f"{row.label}: full, {decision.reason}: {error.message}", position=position)
        layer = await join_layer(work, position)
    await work.set_disk(
        position,
        layer_id=layer["layer_id"],
        disk_id=layer["disk_id"],
        chain_id=layer["chain_id"],
        path=layer["path"],
        cluster_size_bytes=layer["cluster_size_bytes"],
        journal_sequence=0,
        journal_floor_bytes=0,
        bytes_transferred=0,
    )
    await work.log("info", "layer", f"layer {layer['path']} made", layer_id=layer["layer_id"], position=position)
    return {}


async def join_layer(work: Work, position: int) -> dict[str, object]:
    """Makes or joins the disk's layer; the repository refuses older attempts of the job from then on."""
    job = await work.job()
    row = job.disks[position]
    lease = await work.catalogue.leases.take(work.backup_id, leases.LAYER, str(position), work.attempt)
    made = await work.runtime.patiently(
        lambda: work.runtime.repository.create_layer(new_layer(job.repository_id, job.ref.vm_uuid, row), work.holder)
    )
    await work.catalogue.leases.acquired(lease, made.layer_id)
    return {
        "layer_id": made.layer_id,
        "disk_id": made.disk_id,
        "chain_id": made.chain_id,
        "path": made.path,
        "cluster_size_bytes": made.cluster_size_bytes,
    }


def new_layer(repository_id: str, vm_uuid: str, disk: JobDisk) -> NewLayer:
    """Returns what a job's disk asks of the repository."""
    return NewLayer(
        repository_id=repository_id,
        vm_uuid=vm_uuid,
        disk_identity=disk.identity,
        virtual_size_bytes=disk.capacity_bytes,
        parent_layer_id=disk.parent_layer_id,
        change_id=disk.change_id,
    )


async def plan_areas(work: Work, position: int) -> Outcome:
    """Fixes what is to be copied: the agent's plan streams into the repository, page by page.

    Returns:
        `turn_full`: the agent's reason why this increment must become a full; empty when the areas are fixed.
    """
    row = await work.catalogue.running.disk(work.backup_id, position)
    try:
        areas, changed = await _plan(work, row)
    except RemoteError as error:
        if row.backup_type == INCREMENTAL and error.reason in TURNS_FULL:
            await work.log(
                "warning",
                "plan",
                f"{row.label}: {error.message}; the increment becomes a full",
                reason=error.reason,
                position=position,
            )
            return {"turn_full": error.reason}
        raise
    job = await work.job()
    repository = await work.runtime.patiently(lambda: work.runtime.repository.repository(job.repository_id))
    if areas.total_bytes > repository.available_size_bytes:
        raise CannotBackUp(
            f"repository '{repository.name}' has {repository.available_size_bytes} bytes free;"
            f" {row.label} needs up to {areas.total_bytes}",
            reason="NO_ROOM",
            help_text="Delete restore points or make room, then start again.",
            metadata={
                "needed_bytes": str(areas.total_bytes),
                "free_bytes": str(repository.available_size_bytes),
            },
        )
    await work.set_disk(position, changed_bytes=changed, total_bytes=areas.total_bytes)
    await work.log(
        "info",
        "plan",
        f"{row.label}: {areas.total_bytes} bytes in {areas.count} areas",
        total_bytes=areas.total_bytes,
        changed_bytes=changed,
        areas=areas.count,
        digest=areas.digest,
        position=position,
    )
    return {"turn_full": ""}


async def _plan(work: Work, row: JobDisk) -> tuple[Areas, int]:
    """Plans a disk; on a new layer when a plan that broke off (the process died in it) left its areas behind."""
    try:
        return await work.runtime.patiently(lambda: _pipe_plan(work, row))
    except RemoteError as error:
        if error.reason != AREAS_FIXED:
            raise
        await work.log("warning", "plan", f"{row.label}: an earlier plan broke off; the layer is made anew")
    await _discard_layer(work, row)
    await make_layer(work, row.position)
    renewed = await work.catalogue.running.disk(work.backup_id, row.position)
    return await work.runtime.patiently(lambda: _pipe_plan(work, renewed))


async def _discard_layer(work: Work, row: JobDisk) -> None:
    for lease in await work.catalogue.leases.held(work.backup_id, leases.LAYER):
        if lease.resource == str(row.position):
            await work.runtime.patiently(lambda: work.runtime.repository.discard_layer(row.layer_id, work.holder))
            await work.catalogue.leases.end(lease)


async def turn_full(work: Work, position: int, agents_reason: str) -> Outcome:
    """Takes back an increment whose changed areas cannot be had: the disk is a full now, and the job says why."""
    row = await work.catalogue.running.disk(work.backup_id, position)
    await _discard_layer(work, row)
    decision = full(TURNS_FULL[agents_reason])
    await _become_full(work, position, decision)
    await work.log("warning", "turn_full", f"{row.label}: full, {decision.reason}", position=position)
    return {}


async def _become_full(work: Work, position: int, decision: Decision) -> None:
    await work.set_disk(
        position,
        backup_type=decision.backup_type,
        reason=decision.reason,
        parent_backup_id="",
        parent_layer_id="",
        parent_change_id="",
        path="",
    )
    await _record_type(work)


async def seal(work: Work, position: int) -> Outcome:
    """Checks the layer against its journal and makes it durable and read-only."""
    row = await work.catalogue.running.disk(work.backup_id, position)
    sealed = await work.runtime.patiently(
        lambda: work.runtime.repository.seal_layer(row.layer_id, work.holder, row.reason)
    )
    await work.set_disk(position, status=COMPLETED, path=sealed.path, chain_id=sealed.chain_id)
    await work.log(
        "info",
        "seal",
        f"layer {sealed.path} sealed, {sealed.stored_bytes} bytes on disk",
        layer_id=row.layer_id,
        stored_bytes=sealed.stored_bytes,
        position=position,
    )
    return {}


async def _pipe_plan(work: Work, row: JobDisk) -> tuple[Areas, int]:
    """Streams the agent's plan into the repository; returns the areas that are fixed now, and the changed bytes."""
    job = await work.job()
    agent = await work.agent()
    held = await work.catalogue.leases.held(work.backup_id, leases.SNAPSHOT)
    if not held:
        raise LostSnapshot(work.backup_id)
    planned = changed = 0

    async def pages() -> AsyncIterator[list[tuple[int, int]]]:
        nonlocal planned, changed
        ended = False
        plan = agent.plan(job.ref, held[0].resource_id, row.device_key, row.parent_change_id, row.cluster_size_bytes)
        async for page in plan:
            if isinstance(page, PlanEnd):
                changed, ended = page.changed_bytes, True
            else:
                planned += sum(length for _, length in page)
                yield page
        if not ended:
            raise AssertionError("a plan ended without its end")

    areas = await work.runtime.repository.set_areas(row.layer_id, work.holder, pages())
    if areas.total_bytes != planned:
        raise SendenseError(
            f"the repository fixed {areas.total_bytes} bytes of {row.label}, the plan has {planned}",
            kind=Kind.INTERNAL,
            reason="PLAN_MISMATCH",
            help="Look at the repository's log and report it.",
        )
    return areas, changed


async def _record_type(work: Work) -> None:
    """Keeps the job's type and parent true to its disks: full only if every disk is."""
    taken = [each for each in (await work.job()).disks if each.status != SKIPPED]
    parents = [each.parent_backup_id for each in taken if each.parent_backup_id]
    kind = job_type([each.backup_type for each in taken if each.status != PENDING])
    await work.catalogue.running.set_type(work.backup_id, work.attempt, kind, parents[0] if parents else "")
