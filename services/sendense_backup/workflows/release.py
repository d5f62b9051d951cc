"""The release workflow: gives back what a job has acquired, backwards from its lease rows, and ends the job.

Failure, cancel and the caretaker all use it; there is no other way to undo. First the exports stop (which cuts off
whoever still writes), then the layers go, and the snapshot, each as soon as its owner can be reached. When a restore
point of the job exists after all (the answer to its commit was lost), the layers are the point's: it has completed.

What cannot be given back within the setting `release_seconds` stays a lease: the job ends, its log says what is left,
and the caretaker tries again until the agent is back. A snapshot is never forgotten.

| step      | does                                             |
|-----------|--------------------------------------------------|
| exports   | stops serving, with force                        |
| layers    | discards them, or keeps those of a restore point |
| snapshots | removes the job's snapshot                       |
| end       | gives the job its final status                   |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from dbos import DBOS

from sendense_backup.errors import Superseded
from sendense_backup.model import ACTIVE, CANCELLED, COMPLETED, FAILED, SKIPPED
from sendense_backup.store import leases
from sendense_backup.store.leases import Lease
from sendense_backup.workflows.durable import STALE_ATTEMPT, Step, TakenOver, Workflow
from sendense_backup.workflows.layers import new_layer
from sendense_backup.workflows.runtime import Runtime, Work, current, tracked
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

RELEASE_PHASE = "release"
"""Phase of a job that failed and is being undone: no execution of the backup workflow touches it any more."""

END = f"{RELEASE_PHASE}.end"
"""Name of the last step for observers; the others are named after the kinds in `UNDO`."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0


def release_id(backup_id: str, attempt: int = 0) -> str:
    """Returns the workflow id of a job's release; the caretaker's further rounds carry their first attempt."""
    return f"release-{backup_id}-{attempt}" if attempt else f"release-{backup_id}"


@DBOS.workflow(name="release", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def release(backup_id: str) -> str:
    """Gives back what a job holds and ends it.

    All of it is idempotent and starts from the lease rows: an execution that was killed is simply done again.
    """
    with tracked():
        runtime = current()
        return await runtime.outlasting(lambda: _execute(runtime, backup_id))


async def _execute(runtime: Runtime, backup_id: str) -> str:
    try:
        attempt = await runtime.catalogue.running.claim(backup_id)
        ended = attempt is None
        work = Work(runtime, backup_id, attempt or await runtime.catalogue.running.fence_ended(backup_id))
        await runtime.observer.begins(backup_id, RELEASE_PHASE)
        left = await _give_back_patiently(work)
        await runtime.observer.executed(backup_id, RELEASE_PHASE)
        listed = ", ".join(f"{lease.kind} {lease.resource_id or lease.resource}" for lease in left)
        if left and ended:
            log.error("still not given back", job=backup_id, left=listed)  # the job's log said so when it ended
        elif left:
            await work.log("error", "release", f"not given back yet, tried again later: {listed}")
        if not ended:
            await _end(work)
            await runtime.observer.executed(backup_id, END)
    except (TakenOver, Superseded):
        return "taken over"
    except SendenseError as error:  # the caretaker begins anew
        log.warning("a job could not be ended yet", job=backup_id, error=str(error))
        return "not ended"
    return "released"


async def give_back_left_behind(runtime: Runtime, vm_context_id: str) -> None:
    """Gives back what ended jobs of a VM still hold, before a new one begins."""
    for backup_id in await runtime.catalogue.leases.left_behind(vm_context_id):
        work = Work(runtime, backup_id, await runtime.catalogue.running.fence_ended(backup_id))
        await give_back(work)


async def give_back(work: Work) -> list[Lease]:
    """Tries once to give back all that a job holds, newest first; returns what is left."""
    left: list[Lease] = []
    for kind, undo in UNDO.items():
        for lease in await work.catalogue.leases.held(work.backup_id, kind):
            if kind == leases.LAYER and any(each.kind == leases.EXPORT for each in left):
                left.append(lease)  # somebody may still write to it
                continue
            try:
                await work.runtime.observer.begins(work.backup_id, f"{RELEASE_PHASE}.{kind}")
                await undo(work, lease)
                await work.runtime.observer.executed(work.backup_id, f"{RELEASE_PHASE}.{kind}")
            except SendenseError as error:
                if error.reason == STALE_ATTEMPT:
                    raise TakenOver(str(error)) from error
                log.warning("not given back", job=work.backup_id, kind=kind, lease=lease.lease_id, error=str(error))
                left.append(lease)
    return left


async def _give_back_patiently(work: Work) -> list[Lease]:
    deadline = time.monotonic() + work.runtime.settings.release_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        left = await give_back(work)
        if not left or time.monotonic() + pause > deadline:
            return left
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _undo_export(work: Work, lease: Lease) -> None:
    await work.runtime.exports.stop_serving(lease.resource, work.holder, wait_seconds=1)
    await work.catalogue.leases.end(lease)
    await work.log("info", "release", f"export {lease.resource} removed", export_name=lease.resource)


async def _undo_layer(work: Work, lease: Lease) -> None:
    repository = work.runtime.repository
    if await repository.point(work.backup_id) is not None:
        await work.catalogue.leases.end(lease, leases.KEPT)
        return
    layer_id = lease.resource_id
    if not layer_id:
        # The process died between the lease and the answer: joining tells the layer's id, or makes one to discard.
        job = await work.job()
        row = next(each for each in job.disks if str(each.position) == lease.resource)
        layer_id = (
            await repository.create_layer(new_layer(job.repository_id, job.ref.vm_uuid, row), work.holder)
        ).layer_id
    await repository.discard_layer(layer_id, work.holder)
    await work.catalogue.leases.end(lease)
    await work.log("info", "release", f"layer {layer_id} discarded", layer_id=layer_id)


async def _undo_snapshot(work: Work, lease: Lease) -> None:
    await remove_job_snapshot(work, lease)


async def remove_job_snapshot(work: Work, lease: Lease) -> None:
    """Removes the job's snapshot; with no recorded moref, all snapshots of the job."""
    job = await work.job()
    try:
        removed = await (await work.agent()).remove_snapshot(job.ref, work.holder, lease.resource_id)
    except SendenseError as error:
        what = f"snapshot {lease.resource_id or 'of unknown id'} of '{job.vm_name}'"
        await work.set_job(alert=f"{what} is not removed yet, or its disks not consolidated: {error.message}")
        raise
    await work.catalogue.leases.end(lease)
    if job.alert:
        await work.set_job(alert="")
    await work.log("info", "unsnapshot", f"snapshot {', '.join(removed) or 'was gone already'} removed", morefs=removed)


UNDO: dict[str, Callable[[Work, Lease], Awaitable[None]]] = {
    leases.EXPORT: _undo_export,
    leases.LAYER: _undo_layer,
    leases.SNAPSHOT: _undo_snapshot,
}
"""How each kind of lease is given back, in the order of undoing."""


async def _end(work: Work) -> None:
    job = await work.job()
    if job.status not in ACTIVE:
        return
    status = CANCELLED if job.error_reason == "CANCELLED" else FAILED
    if await _made_a_point(work):
        status = COMPLETED
        await work.set_job(error_reason=None, error_message=None)
    await work.log("info", "end", f"the backup ends as {status}")
    await work.catalogue.running.end(work.backup_id, work.attempt, status)
    work.runtime.job_ended()


async def _made_a_point(work: Work) -> bool:
    """Asks the repository, where all disks had been sealed: the answer to the commit may have been lost."""
    disks = (await work.job()).disks
    if not disks or any(disk.status not in (COMPLETED, SKIPPED) for disk in disks):
        return False
    point = await work.runtime.patiently(lambda: work.runtime.repository.point(work.backup_id))
    return point is not None


WORKFLOW = Workflow(
    RELEASE_PHASE,
    release,
    (*(Step(f"{RELEASE_PHASE}.{kind}", undo) for kind, undo in UNDO.items()), Step(END, _end)),  # type: ignore[arg-type]
)
"""Its steps as observers see them; none is recorded, since all of it is done again from the lease rows."""
