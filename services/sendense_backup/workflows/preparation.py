"""The first steps of a backup: look at the VM, refuse what must not be done, change tracking, the snapshot."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import structlog

from sendense_backup.decisions import with_snapshot_facts
from sendense_backup.errors import BackupNotFound, CannotBackUp, RepositoryDisabled
from sendense_backup.model import PENDING, SKIPPED, Disk, Holder, Job, Vm
from sendense_backup.store import leases
from sendense_backup.workflows.durable import Outcome
from sendense_backup.workflows.release import give_back_left_behind
from sendense_backup.workflows.runtime import Work
from sendense_db.columns import utc_now
from sendense_rpc.errors import Kind, RemoteError, SendenseError

log = structlog.get_logger()

EXCLUDED = "excluded by the caller"
SHARED = ("disk on a shared bus", "disk shared by several writers")
"""Why the agent skips a disk that keeps vCenter from making any snapshot of the VM."""
FORGOTTEN_AFTER = timedelta(hours=24)
"""A snapshot of this installation whose job the catalogue does not know (it was restored, or lost) goes after this."""
_ANY_ATTEMPT = 1 << 40
"""Nobody knows the attempts of a forgotten job: this is later than any of them."""


async def inspect(work: Work) -> Outcome:
    """Reads the VM as it is now and records its disks."""
    job = await work.job()
    vm = await work.runtime.patiently(lambda: _inspect(work))
    await work.set_job(hardware_json=vm.hardware_json)
    _check_excluded(job, vm.disks)
    disks = _without_excluded(job, vm.disks)
    await work.catalogue.running.put_disks(
        work.backup_id, work.attempt, [(disk, SKIPPED if disk.skip_reason else PENDING) for disk in disks]
    )
    for disk in disks:
        if disk.skip_reason:
            await work.log("warning", "inspect", f"{disk.label} is skipped: {disk.skip_reason}", identity=disk.identity)
    await work.log("info", "inspect", f"VM '{vm.name}' has {len(vm.disks)} disks", vm_uuid=job.ref.vm_uuid)
    return {}


def _without_excluded(job: Job, disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
    """Returns the disks, those that the caller left out with that as the reason to skip them."""
    wanted = set(job.exclude_disks)
    return tuple(
        dataclasses.replace(disk, skip_reason=disk.skip_reason or EXCLUDED) if wanted & _names(disk) else disk
        for disk in disks
    )


def _check_excluded(job: Job, disks: tuple[Disk, ...]) -> None:
    """Refuses names of disks that the VM does not have: a slip of the pen must not back up what was to be left out.

    Raises:
        CannotBackUp: UNKNOWN_DISK.
    """
    for name in sorted(job.exclude_disks):
        if not any(name in _names(disk) for disk in disks):
            raise CannotBackUp(
                f"'{job.vm_name}' has no disk '{name}' to leave out; it has {', '.join(disk.label for disk in disks)}",
                reason="UNKNOWN_DISK",
                help_text="Name a disk by its label, its device key or its uuid.",
                metadata={"vm_name": job.vm_name, "disk": name},
            )


def _names(disk: Disk) -> set[str]:
    return {disk.label, str(disk.device_key), disk.identity, disk.identity.rpartition("/")[0]}


async def check(work: Work) -> Outcome:
    """Refuses a VM or a repository that a backup would harm, and gives back what earlier jobs of the VM left."""
    settings = work.runtime.settings
    job = await work.job()
    vm = await work.runtime.patiently(lambda: _inspect(work))
    facts = {"vm_name": job.vm_name}
    if vm.template:
        raise CannotBackUp(
            f"'{job.vm_name}' is a template",
            reason="VM_IS_TEMPLATE",
            help_text="Convert it to a VM or make a VM of it.",
            metadata=facts,
        )
    disks = _without_excluded(job, vm.disks)
    if all(disk.skip_reason for disk in disks):
        listed = "; ".join(f"{disk.label}: {disk.skip_reason}" for disk in disks)
        raise CannotBackUp(
            f"'{job.vm_name}' has no disk that can be backed up ({listed or 'it has no disks'})",
            reason="NO_DISKS",
            help_text="Independent disks and physical RDMs cannot be snapshotted: change their mode.",
            metadata=facts,
        )
    shared = [disk.label for disk in vm.disks if disk.skip_reason in SHARED]
    if shared:
        raise CannotBackUp(
            f"'{job.vm_name}' shares {', '.join(shared)} with other VMs: vCenter makes no snapshot of such a VM",
            reason="DISK_SHARED",
            help_text="Back up the shared disks from within the guest, or take them off the VM.",
            metadata=facts,
        )
    if vm.snapshot_count > settings.max_snapshots:
        raise CannotBackUp(
            f"'{job.vm_name}' has {vm.snapshot_count} snapshots; at most {settings.max_snapshots} are allowed",
            reason="TOO_MANY_SNAPSHOTS",
            help_text="Remove snapshots in vCenter.",
            metadata=facts,
        )
    if vm.datastore_free_bytes < settings.min_datastore_free_bytes:
        raise CannotBackUp(
            f"a datastore of '{job.vm_name}' has {vm.datastore_free_bytes} bytes free;"
            f" {settings.min_datastore_free_bytes} are needed, because a growing snapshot stops VMs",
            reason="DATASTORE_FULL",
            help_text="Make room on the datastore, or set SENDENSE_BACKUP_MIN_DATASTORE_FREE_BYTES.",
            metadata=facts,
        )
    if vm.consolidation_needed:
        await work.log("warning", "check", "the VM's disks need consolidation: do it in vCenter")
    repository = await work.runtime.patiently(lambda: work.runtime.repository.repository(job.repository_id))
    if not repository.enabled:
        raise RepositoryDisabled(repository.name)
    await give_back_left_behind(work.runtime, job.vm_context_id)
    await _remove_forgotten(work, vm)
    return {}


async def _remove_forgotten(work: Work, vm: Vm) -> None:
    """Removes snapshots of this installation that no lease names: a catalogue that was restored has forgotten them."""
    agent = await work.agent()
    for each in vm.snapshots:
        if each.installation_id != agent.installation_id or each.created_at > utc_now() - FORGOTTEN_AFTER:
            continue
        try:
            await work.catalogue.jobs.get(each.job_id)
        except BackupNotFound:
            pass
        else:
            continue
        try:
            await agent.remove_snapshot(vm.ref, Holder(each.job_id, _ANY_ATTEMPT), each.moref)
        except SendenseError as error:
            log.warning("a forgotten snapshot cannot be removed", moref=each.moref, error=str(error))
        else:
            await work.log("warning", "check", f"removed the forgotten snapshot {each.name} ({each.moref})")


async def change_tracking(work: Work) -> Outcome:
    """Turns change tracking on where it is off and can be had; without it each backup is full."""
    job = await work.job()
    vm = await work.runtime.patiently(lambda: _inspect(work))
    if vm.change_tracking_enabled:
        return {}
    if not vm.change_tracking_supported:
        await work.log("warning", "change_tracking", "the VM does not support change tracking: each backup is full")
        return {}

    async def enable() -> None:
        await (await work.agent()).enable_change_tracking(job.ref, work.holder)

    try:
        await work.runtime.patiently(enable)
    except RemoteError as error:
        if error.kind is not Kind.FAILED_PRECONDITION:
            raise
        await work.log("warning", "change_tracking", f"change tracking stays off: {error.message}", reason=error.reason)
    else:
        await work.log("info", "change_tracking", "change tracking was turned on")
    return {}


async def snapshot(work: Work) -> Outcome:
    """Makes the job's one snapshot, or joins it; records the disks as they are in it.

    Returns:
        `positions` of the disks to back up.
    """
    job = await work.job()
    lease = await work.catalogue.leases.take(work.backup_id, leases.SNAPSHOT, job.ref.vm_uuid, work.attempt)

    async def create() -> tuple[str, list[tuple[Disk, str]]]:
        made = await (await work.agent()).create_snapshot(job.ref, work.holder, quiesce=job.quiesce)
        await work.catalogue.leases.acquired(lease, made.moref)
        known = {disk.identity for disk in made.disks}
        disks = _without_excluded(job, made.disks)
        found = [(disk, SKIPPED if disk.skip_reason else PENDING) for disk in disks]
        # What cannot be snapshotted may be missing from the snapshot; it stays in the job as skipped.
        for each in job.disks:
            if each.status == SKIPPED and each.identity not in known:
                skipped = Disk(each.device_key, each.identity, each.label, each.capacity_bytes)
                found.append((dataclasses.replace(skipped, skip_reason=each.reason), SKIPPED))
        problem = made.quiesce_problem
        if job.quiesce and not made.quiesced and not problem:
            problem = "the VM is off, or its tools do not run"
        first = next((disk.change_id for disk, status in found if status == PENDING), "")
        _, hardware_json = await work.catalogue.running.facts_for_point(work.backup_id)
        await work.set_job(
            snapshot_at=made.created_at,
            change_id=first,
            hardware_json=with_snapshot_facts(hardware_json, made.facts),
            consistency="quiesced" if made.quiesced else "crash-consistent",
            consistency_note=problem,
        )
        await work.catalogue.running.put_disks(work.backup_id, work.attempt, found)
        await work.log(
            "info",
            "snapshot",
            f"snapshot {made.moref} made ({'quiesced' if made.quiesced else 'crash-consistent'})",
            moref=made.moref,
            quiesced=made.quiesced,
            alone=made.facts.alone,
            event_mark=made.facts.event_mark,
        )
        if problem:
            await work.log(
                "warning",
                "snapshot",
                f"the guest could not be quiesced, the backup is crash-consistent: {problem}",
                moref=made.moref,
            )
        return made.moref, found

    moref, found = await work.runtime.patiently(create)
    positions = [position for position, (_, status) in enumerate(found) if status == PENDING]
    if not positions:
        raise CannotBackUp(
            f"snapshot {moref} holds no disk of '{job.vm_name}'",
            reason="NO_DISKS",
            help_text="Look at the VM's disks in vCenter.",
        )
    return {"positions": positions, "moref": moref}


async def _inspect(work: Work) -> Vm:
    job = await work.job()
    return await (await work.agent()).inspect(job.ref)
