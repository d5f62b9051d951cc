"""The sweep workflow: finds what nobody looks after any more, ends it, and says what it did.

A schedule in the catalogue starts one round after the other, once over all replicas. Jobs that just failed need no
sweep: the caretaker releases them at once. A sweep finds what stayed: snapshots, exports and partial layers under
leases of ended jobs whose agent was away, exports of jobs of ours that ended without a lease, and records that are too
old to keep. Idle mounts are the restore service's own to end, leftovers of a crash in storage the repository's at its
start.

| step    | does                                                              | undo |
|---------|-------------------------------------------------------------------|------|
| leases  | gives back what ended jobs still hold: snapshots, layers, exports |      |
| exports | stops serving for jobs that ended                                 |      |
| records | purges records of workflows and sweeps that ended long ago        |      |
"""

from __future__ import annotations

from datetime import timedelta

import structlog
from dbos import DBOS

from sendense_backup.model import SWEEP, Holder
from sendense_backup.workflows.durable import ENDED, Outcome, Step, TakenOver, Workflow, run
from sendense_backup.workflows.operation import OperationWork, execute
from sendense_backup.workflows.release import give_back
from sendense_backup.workflows.runtime import Work
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

PURGE_AT_ONCE = 500


async def leases(work: OperationWork) -> Outcome:
    """Gives back what ended jobs still hold."""
    catalogue = work.catalogue
    given: list[str] = []
    left: list[str] = []
    for backup_id in await catalogue.leases.left_behind():
        before = await catalogue.leases.held(backup_id)
        ended = Work(work.runtime, backup_id, await catalogue.running.fence_ended(backup_id))
        try:
            still = await give_back(ended)
        except TakenOver:
            continue  # a release of the job runs at this moment
        names = {
            lease.lease_id: f"{lease.kind} {lease.resource_id or lease.resource} of {backup_id}" for lease in before
        }
        left += [names[lease.lease_id] for lease in still]
        given += [name for lease_id, name in names.items() if lease_id not in {lease.lease_id for lease in still}]
    await _say(work, "leases", "given back", given)
    await _say(work, "leases", "could not be given back yet", left, level="warning")
    await work.add_result(given_back=given, left=left)
    return {}


async def exports(work: OperationWork) -> Outcome:
    """Stops serving for jobs that ended."""
    stopped: list[str] = []
    for name, holder in await work.runtime.patiently(work.runtime.exports.held):
        ended = await work.catalogue.jobs.ended(holder)
        if not ended or await work.catalogue.leases.held(holder):
            continue  # not ours, or its job or lease looks after it
        attempt = await work.catalogue.running.fence_ended(holder)
        try:
            await work.runtime.exports.stop_serving(name, Holder(holder, attempt), wait_seconds=1)
        except SendenseError as error:
            await work.log("warning", "exports", f"export {name} could not be stopped: {error.message}")
        else:
            stopped.append(name)
    await _say(work, "exports", "stopped", stopped)
    await work.add_result(exports=stopped)
    return {}


async def records(work: OperationWork) -> Outcome:
    """Purges records that ended long ago; backups, their logs and operations on restore points stay."""
    before = utc_now() - timedelta(days=work.runtime.settings.keep_records_days)
    workflows = 0
    while True:
        old = await DBOS.list_workflows_async(
            status=sorted(ENDED),
            completed_before=before.isoformat(),
            limit=PURGE_AT_ONCE,
            load_input=False,
            load_output=False,
        )
        if not old:
            break
        await DBOS.delete_workflows_async([each.workflow_id for each in old])
        workflows += len(old)
    sweeps = await work.catalogue.operations.forget_ended(SWEEP, before)
    if workflows or sweeps:
        await work.log("info", "records", f"{workflows} records of workflows and {sweeps} sweeps purged")
    await work.add_result(workflows_purged=workflows, sweeps_purged=sweeps)
    return {}


async def _say(work: OperationWork, step: str, what: str, names: list[str], level: str = "info") -> None:
    for name in names:
        await work.log(level, step, f"{name} {what}")


LEASES = Step("leases", leases)
EXPORTS = Step("exports", exports)
RECORDS = Step("records", records)
STEPS = (LEASES, EXPORTS, RECORDS)


@DBOS.workflow(name="sweep", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def sweep(operation_id: str) -> str:
    """Runs a sweep to its end."""
    return await execute(operation_id, _body)


async def _body(work: OperationWork) -> None:
    for step in STEPS:
        await run(work, step)


WORKFLOW = Workflow(SWEEP, sweep, STEPS)
