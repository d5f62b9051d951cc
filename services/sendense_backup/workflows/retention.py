"""The retention workflow: plans what rules keep of VMs' restore points, and does exactly that plan.

The plan's digest and moment are kept: a job that goes on after a crash does the plan that it began with. When the
points have changed before the first one went, it is planned again, a few times.

| step  | does                                          | undo                                       |
|-------|-----------------------------------------------|--------------------------------------------|
| plan  | says what stays, by which rule, and what goes |                                            |
| apply | the repository removes what goes              | each removal leaves all as it was, or ends |
| hide  | hides the rows of what is gone                |                                            |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from dbos import DBOS

from sendense_backup.clients.maintenance import Progressing, RetentionPlan
from sendense_backup.model import RETENTION, RetentionRules
from sendense_backup.workflows.durable import Outcome, Step, Workflow, run
from sendense_backup.workflows.following import follow
from sendense_backup.workflows.operation import OperationWork, execute
from sendense_backup.workflows.removal import note_gone
from sendense_rpc.errors import SendenseError

PLAN_CHANGED = "PLAN_CHANGED"
PLANS = 3
"""How often it is planned anew when the points change under the plan."""
LOOK_SECONDS = 0.5


async def plan(work: OperationWork) -> Outcome:
    """Plans, and keeps the plan."""
    operation = await work.operation()
    made = await _plan(work)
    going = [each for each in made.points if not each.keep]
    await work.log(
        "info",
        "plan",
        f"{len(going)} of {len(made.points)} restore points go",
        going=[each.backup_id for each in going],
        kept={each.backup_id: list(each.rules) for each in made.points if each.keep},
        freed_bytes=made.freed_bytes,
        vm_name=operation.vm_name,
    )
    return {"as_of": made.as_of.isoformat(), "digest": made.digest, "going": [each.backup_id for each in going]}


async def apply(work: OperationWork) -> Outcome:
    """Lets the repository do the plan."""
    kept = (await work.operation()).result["plan"]
    if not kept["going"]:
        await work.add_result(backup_ids=[], freed_bytes=0)
        return {}
    for number in range(PLANS):
        try:
            ended = await _apply(work, kept)
        except SendenseError as error:
            if error.reason != PLAN_CHANGED or number == PLANS - 1:
                raise
            await work.log("warning", "apply", "the restore points changed under the plan: planning again")
            made = await _plan(work)
            kept = {"as_of": made.as_of.isoformat(), "digest": made.digest}
        else:
            gone = list(ended.backup_ids)
            await work.add_result(backup_ids=gone, freed_bytes=ended.freed_bytes)
            await work.log(
                "info",
                "apply",
                f"{len(gone)} restore points went, {ended.freed_bytes} bytes came back",
                backup_ids=gone,
            )
            break
    return {}


async def hide(work: OperationWork) -> Outcome:
    """Hides the rows of what is gone, and says what others became by it."""
    await note_gone(work, (await work.operation()).result["backup_ids"])
    return {}


async def _plan(work: OperationWork) -> RetentionPlan:
    operation = await work.operation()
    vm_uuids = [str(each) for each in operation.arguments["vm_uuids"]]
    rules = RetentionRules(**operation.arguments["rules"])
    return await work.runtime.patiently(
        lambda: work.runtime.maintenance.plan_retention(operation.repository_id, vm_uuids, rules)
    )


async def _apply(work: OperationWork, kept: dict[str, object]) -> Progressing:
    operation = await work.operation()
    maintenance = work.runtime.maintenance
    planned = RetentionPlan(
        repository_id=operation.repository_id,
        vm_uuids=tuple(operation.arguments["vm_uuids"]),
        rules=RetentionRules(**operation.arguments["rules"]),
        as_of=datetime.fromisoformat(str(kept["as_of"])),
        digest=str(kept["digest"]),
        freed_bytes=0,
    )

    async def watch() -> AsyncIterator[Progressing]:
        while True:
            state = await maintenance.retention(work.job_id)
            yield state
            if state.ended:
                return
            await asyncio.sleep(LOOK_SECONDS)

    return await follow(work, "apply", lambda: maintenance.start_retention(planned, work.holder), watch)


PLAN = Step("plan", plan)
APPLY = Step("apply", apply, "each removal leaves everything as it was, or is finished")
HIDE = Step("hide", hide, cancellable=False)
STEPS = (PLAN, APPLY, HIDE)


@DBOS.workflow(name="retention", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def retention(operation_id: str) -> str:
    """Runs a retention to its end."""
    return await execute(operation_id, _body)


async def _body(work: OperationWork) -> None:
    made = await run(work, PLAN)
    await work.runtime.outlasting(lambda: work.add_result(plan=made))
    await run(work, APPLY)
    await run(work, HIDE)


WORKFLOW = Workflow(RETENTION, retention, STEPS)
