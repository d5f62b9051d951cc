"""The delete workflow: takes restore points away without harm to any other.

What is to go is settled first and kept, so that a job that goes on after a crash deletes what it began with and
nothing else. Then the repository does it: layers that kept points build on are merged into them, or, with `cascade`,
the points that build on the deleted ones go too. Storage goes first; only then the rows of the backups are hidden.

| step   | does                              | undo                                           |
|--------|-----------------------------------|------------------------------------------------|
| settle | says what goes, and what merges   |                                                |
| remove | the repository deletes and merges | it leaves everything as it was, or is finished |
| hide   | hides the rows of what is gone    |                                                |
"""

from __future__ import annotations

from dbos import DBOS

from sendense_backup.model import DELETE
from sendense_backup.workflows.durable import Outcome, Step, Workflow, run
from sendense_backup.workflows.following import follow
from sendense_backup.workflows.operation import OperationWork, execute
from sendense_backup.workflows.removal import note_gone


async def settle(work: OperationWork) -> Outcome:
    """Says what goes."""
    operation = await work.operation()
    named, cascade = _asked(operation.arguments)
    plan = await work.runtime.patiently(lambda: work.runtime.maintenance.plan_deletion(named, cascade=cascade))
    merged = f", {len(plan.merged_into)} take layers in" if plan.merged_into else ""
    await work.log(
        "info",
        "settle",
        f"{len(plan.backup_ids)} restore points go{merged}",
        backup_ids=list(plan.backup_ids),
        merged_into=list(plan.merged_into),
        freed_bytes=plan.freed_bytes,
    )
    # With those that were named: a point that an earlier attempt removed is hidden too.
    await work.add_result(settled=list(dict.fromkeys([*plan.backup_ids, *named])))
    return {}


async def remove(work: OperationWork) -> Outcome:
    """Lets the repository delete."""
    operation = await work.operation()
    _, cascade = _asked(operation.arguments)
    settled = [str(each) for each in operation.result["settled"]]
    maintenance = work.runtime.maintenance
    wait = work.runtime.settings.holders_wait_seconds

    ended = await follow(
        work,
        "remove",
        lambda: maintenance.start_deletion(settled, work.holder, cascade=cascade, wait_seconds=wait),
        lambda: maintenance.watch_operation(work.job_id),
    )
    gone = list(dict.fromkeys([*ended.backup_ids, *settled]))
    await work.add_result(backup_ids=gone, freed_bytes=ended.freed_bytes, **ended.facts)
    await work.log("info", "remove", f"{ended.freed_bytes} bytes came back", freed_bytes=ended.freed_bytes)
    return {}


async def hide(work: OperationWork) -> Outcome:
    """Hides the rows of what is gone, and says what others became by it."""
    gone = (await work.operation()).result["backup_ids"]
    await note_gone(work, gone)
    await work.log("info", "hide", f"{len(gone)} backups are gone", backup_ids=gone)
    return {}


SETTLE = Step("settle", settle)
REMOVE = Step("remove", remove, "it leaves everything as it was, or is finished")
HIDE = Step("hide", hide, cancellable=False)
STEPS = (SETTLE, REMOVE, HIDE)


@DBOS.workflow(name="delete", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def delete(operation_id: str) -> str:
    """Runs a deletion to its end."""
    return await execute(operation_id, _body)


async def _body(work: OperationWork) -> None:
    for step in STEPS:
        await run(work, step)


def _asked(arguments: dict[str, object]) -> tuple[list[str], bool]:
    named = arguments["backup_ids"]
    if not isinstance(named, list):
        raise TypeError("backup_ids is a list")
    return [str(each) for each in named], bool(arguments.get("cascade"))


WORKFLOW = Workflow(DELETE, delete, STEPS)
