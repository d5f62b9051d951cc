"""The consolidate workflow: joins a run of a VM's restore points into the last of them, which keeps its content.

With the full as the first of the run, the last becomes a full: a synthetic one, without reading the VM again.

| step  | does                                              | undo                                           |
|-------|---------------------------------------------------|------------------------------------------------|
| merge | the repository merges the run into the last point | it leaves everything as it was, or is finished |
| hide  | hides the rows of what is gone                    |                                                |
"""

from __future__ import annotations

from dbos import DBOS

from sendense_backup.model import CONSOLIDATE
from sendense_backup.workflows.durable import Outcome, Step, Workflow, run
from sendense_backup.workflows.following import follow
from sendense_backup.workflows.operation import OperationWork, execute
from sendense_backup.workflows.removal import note_gone


async def merge(work: OperationWork) -> Outcome:
    """Lets the repository merge."""
    arguments = (await work.operation()).arguments
    first, last = str(arguments["first_backup_id"]), str(arguments["last_backup_id"])
    maintenance = work.runtime.maintenance
    wait = work.runtime.settings.holders_wait_seconds
    ended = await follow(
        work,
        "merge",
        lambda: maintenance.start_consolidation(first, last, work.holder, wait_seconds=wait),
        lambda: maintenance.watch_operation(work.job_id),
    )
    gone = list(ended.backup_ids)
    await work.add_result(backup_ids=gone, freed_bytes=ended.freed_bytes, kept_backup_id=last)
    await work.log(
        "info",
        "merge",
        f"{len(gone)} restore points went into {last}, {ended.freed_bytes} bytes came back",
        backup_ids=gone,
        freed_bytes=ended.freed_bytes,
    )
    return {}


async def hide(work: OperationWork) -> Outcome:
    """Hides the rows of what is gone, and says what the last point is now."""
    await note_gone(work, (await work.operation()).result["backup_ids"])
    return {}


MERGE = Step("merge", merge, "it leaves everything as it was, or is finished")
HIDE = Step("hide", hide, cancellable=False)
STEPS = (MERGE, HIDE)


@DBOS.workflow(name="consolidate", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def consolidate(operation_id: str) -> str:
    """Runs a consolidation to its end."""
    return await execute(operation_id, _body)


async def _body(work: OperationWork) -> None:
    for step in STEPS:
        await run(work, step)


WORKFLOW = Workflow(CONSOLIDATE, consolidate, STEPS)
