"""The backup workflow: one for full and incremental, because that is decided per disk.

A job begins with a look at the VM: its disks, whether it may be backed up now, whether change tracking can be had.
Then one snapshot freezes all disks at one moment. Disk after disk, it is decided whether the disk is read fully or only
where it changed since the VM's previous restore point, and why; a layer is made, what is to be copied is fixed before
the first byte moves, and the agent copies it into an export of that layer while the journal grows. When vCenter cannot
tell what changed, that disk becomes a full, loudly. A sealed layer belongs to nothing until, at the end, one call makes
the restore point of all disks at once. Only then the snapshot goes.

| step            | does                                                    | undone by `release`          |
|-----------------|---------------------------------------------------------|------------------------------|
| inspect         | reads the VM's hardware and disks                       |                              |
| check           | refuses what must not be snapshotted or has no room     |                              |
| change_tracking | turns CBT on where it can be                            | stays on, for the next one   |
| snapshot        | one snapshot for all disks, under a lease               | removes the snapshot         |
| decide.N        | full or increment of disk N, and why                    |                              |
| layer.N         | makes the layer, under a lease                          | discards the layer           |
| plan.N          | fixes the areas to copy                                 | goes with the layer          |
| turn_full.N     | when the plan says so: discards the layer, records why  |                              |
| export.N        | serves the layer to the agent, under a lease            | stops serving                |
| capture.N       | copies; journal and progress stream back                | goes with the layer          |
| close.N         | stops serving                                           |                              |
| seal.N          | checks the layer and makes it durable                   | goes with the layer          |
| audit.N         | compares a sample of what was not copied with the chain |                              |
| commit          | makes the restore point; from here the job succeeds     |                              |
| unsnapshot      | removes the snapshot; what fails is left to the caretaker|                              |

Whatever fails before `commit`, and a wish to cancel, hands the job over to the workflow `release`.
"""

from __future__ import annotations

import structlog
from dbos import DBOS

from sendense_backup.errors import Superseded
from sendense_backup.model import COMPLETED, PENDING
from sendense_backup.workflows import audit, capture, layers, preparation, publication
from sendense_backup.workflows.durable import Step, StepFailed, TakenOver, Workflow, run
from sendense_backup.workflows.release import RELEASE_PHASE
from sendense_backup.workflows.runtime import Runtime, Work, current, tracked

log = structlog.get_logger()

INSPECT = Step("inspect", preparation.inspect)
CHECK = Step("check", preparation.check)
CHANGE_TRACKING = Step("change_tracking", preparation.change_tracking, "stays on, for the next backup")
SNAPSHOT = Step("snapshot", preparation.snapshot, "removes the snapshot")
DECIDE = Step("decide", layers.decide_disk, per_disk=True)
LAYER = Step("layer", layers.make_layer, "discards the layer", per_disk=True)
PLAN = Step("plan", layers.plan_areas, "goes with the layer", per_disk=True)
TURN_FULL = Step("turn_full", layers.turn_full, per_disk=True)
EXPORT = Step("export", capture.open_export, "stops serving", per_disk=True)
CAPTURE = Step("capture", capture.capture, "goes with the layer", per_disk=True)
CLOSE = Step("close", capture.close_export, per_disk=True)
SEAL = Step("seal", layers.seal, "goes with the layer", per_disk=True)
AUDIT = Step("audit", audit.audit, per_disk=True)
COMMIT = Step("commit", publication.commit)
UNSNAPSHOT = Step("unsnapshot", publication.remove_snapshot, cancellable=False)

STEPS = (
    INSPECT, CHECK, CHANGE_TRACKING, SNAPSHOT, DECIDE, LAYER, PLAN, TURN_FULL, EXPORT, CAPTURE, CLOSE, SEAL, AUDIT,
    COMMIT, UNSNAPSHOT,
)  # fmt: skip
"""All steps, in order; tests fail and kill at each of them."""


HANDED_OVER = "handed over to release"


@DBOS.workflow(name="backup", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def backup(backup_id: str) -> str:
    """Runs a job to its end.

    Returns:
        How this execution ended, for the record: the job's fate is in the catalogue.
    """
    with tracked():
        return await _execute(current(), backup_id)


async def _execute(runtime: Runtime, backup_id: str) -> str:
    outlasting = runtime.outlasting
    job = await outlasting(lambda: runtime.catalogue.running.read(backup_id))
    if job.phase == RELEASE_PHASE:  # an earlier execution failed and died after it had handed over
        return HANDED_OVER
    work = Work(runtime, backup_id, job.attempt)
    try:
        attempt = await outlasting(lambda: runtime.catalogue.running.claim(backup_id))
        if attempt is None:
            return "had ended"
        work = Work(runtime, backup_id, attempt)
        if attempt > runtime.settings.max_attempts:
            raise StepFailed(  # noqa: TRY301
                "start", "TOO_MANY_ATTEMPTS", f"the process died {attempt - 1} times while this job ran", "See the log."
            )
        await _run(work)
    except StepFailed as failure:
        failed = failure
        return await outlasting(lambda: _hand_over(work, failed))
    except (TakenOver, Superseded):
        log.warning("taken over", job=backup_id)
        return "taken over"
    except Exception as error:
        log.exception("unexpected error in the workflow", job=backup_id)
        defect = StepFailed("workflow", "INTERNAL", f"unexpected {type(error).__name__}", "See the log.")
        return await outlasting(lambda: _hand_over(work, defect))
    return COMPLETED


async def _run(work: Work) -> None:
    await work.runtime.outlasting(lambda: _begin(work))
    await run(work, INSPECT)
    await run(work, CHECK)
    await run(work, CHANGE_TRACKING)
    positions = (await run(work, SNAPSHOT))["positions"]
    for position in positions:
        await _back_up_disk(work, position)
    await run(work, COMMIT)
    await run(work, UNSNAPSHOT)
    await work.runtime.outlasting(lambda: _complete(work))


async def _begin(work: Work) -> None:
    if (await work.job()).status == PENDING:
        await work.log("info", "start", "the backup begins")
    else:
        await work.log("warning", "start", "the backup goes on after the service had ended")
    await work.catalogue.running.start(work.backup_id, work.attempt)


async def _complete(work: Work) -> None:
    await work.log("info", "end", "the backup is complete")
    await work.catalogue.running.end(work.backup_id, work.attempt, COMPLETED)
    work.runtime.job_ended()


async def _back_up_disk(work: Work, position: int) -> None:
    await run(work, DECIDE, position)
    await run(work, LAYER, position)
    turn_full = (await run(work, PLAN, position))["turn_full"]
    if turn_full:
        await run(work, TURN_FULL, position, turn_full)
        await run(work, LAYER, position)
        await run(work, PLAN, position)
    for step in (EXPORT, CAPTURE, CLOSE, SEAL, AUDIT):
        await run(work, step, position)


async def _hand_over(work: Work, failure: StepFailed) -> str:
    """Records why the job failed and leaves the rest to `release`."""
    level = "info" if failure.reason == "CANCELLED" else "error"
    message = f"{failure.message}. {failure.help}".strip() if failure.help else failure.message
    try:
        await work.set_job(phase=RELEASE_PHASE, error_reason=failure.reason, error_message=message)
    except Superseded:
        return "taken over"
    await work.log(level, failure.step, failure.message, reason=failure.reason)
    work.runtime.handed_over.set()
    return HANDED_OVER


WORKFLOW = Workflow("backup", backup, STEPS)
