"""The last steps of a backup: make the restore point of all disks at once, then give the snapshot back."""

from __future__ import annotations

from sendense_backup.clients.repository import NewPoint
from sendense_backup.model import COMPLETED
from sendense_backup.store import leases
from sendense_backup.workflows.durable import Outcome
from sendense_backup.workflows.release import remove_job_snapshot
from sendense_backup.workflows.runtime import Work
from sendense_rpc.errors import SendenseError


async def commit(work: Work) -> Outcome:
    """Makes the restore point; whole or not at all, and the same again is no error."""
    job = await work.job()
    snapshot_at, hardware_json = await work.catalogue.running.facts_for_point(work.backup_id)
    new = NewPoint(
        repository_id=job.repository_id,
        vm_uuid=job.ref.vm_uuid,
        vm_name=job.vm_name,
        vm_context_id=job.vm_context_id,
        layer_ids=[disk.layer_id for disk in job.disks if disk.status == COMPLETED],
        snapshot_at=snapshot_at,
        hardware_json=hardware_json,
    )
    await work.runtime.patiently(lambda: work.runtime.repository.commit_point(new, work.holder))
    for lease in await work.catalogue.leases.held(work.backup_id, leases.LAYER):
        await work.catalogue.leases.end(lease, leases.KEPT)
    await work.log("info", "commit", f"restore point made of {len(new.layer_ids)} disks", layers=new.layer_ids)
    return {}


async def remove_snapshot(work: Work) -> Outcome:
    """Removes the snapshot. The restore point stands: a failure is an alert, and the caretaker goes on trying."""
    for lease in await work.catalogue.leases.held(work.backup_id, leases.SNAPSHOT):
        try:
            await work.runtime.patiently(lambda lease=lease: remove_job_snapshot(work, lease))  # type: ignore[misc]
        except SendenseError as error:
            await work.log(
                "error",
                "unsnapshot",
                f"snapshot {lease.resource_id} could not be removed and grows; it is tried again: {error.message}",
                moref=lease.resource_id,
                reason=error.reason,
            )
    return {}
