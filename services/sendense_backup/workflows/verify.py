"""The verify workflow: reads a restore point back and compares it with what was written.

A point that is found damaged is no failed job in the sense of a defect: everything was read. But nobody must overlook
it, so the job ends as `failed` with the reason POINT_CORRUPT, naming the ranges.

| step  | does                                        | undo                                   |
|-------|---------------------------------------------|----------------------------------------|
| read  | the repository reads every layer            | stops reading; what was found is kept   |
| judge | says whether the point is sound             |                                        |
"""

from __future__ import annotations

import asyncio

from dbos import DBOS

from sendense_backup.clients.maintenance import CANCELLED, Progressing
from sendense_backup.errors import Cancelled, PointCorrupt
from sendense_backup.model import VERIFY
from sendense_backup.workflows.durable import Outcome, Step, Workflow, run
from sendense_backup.workflows.following import follow
from sendense_backup.workflows.operation import OperationWork, execute

CANCEL_SECONDS = 1.0
"""A running verification is asked this often whether it was cancelled."""


async def read(work: OperationWork) -> Outcome:
    """Lets the repository read the point back; a wish to cancel stops it at its next chunk."""
    operation = await work.operation()
    maintenance = work.runtime.maintenance

    async def seen(state: Progressing) -> None:
        if state.state == CANCELLED:
            raise Cancelled(work.job_id)

    asking = asyncio.create_task(_cancel_when_asked(work))
    try:
        ended = await follow(
            work,
            "read",
            lambda: maintenance.start_verification(
                work.job_id,
                operation.backup_id,
                bytes_per_second=int(operation.arguments.get("bytes_per_second", 0)),
                max_age_seconds=int(operation.arguments.get("max_age_seconds", 0)),
            ),
            lambda: maintenance.watch_verification(work.job_id),
            seen,
        )
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await work.add_result(read_bytes=ended.done_bytes, **ended.facts)
    await work.log("info", "read", f"{ended.done_bytes} bytes read", read_bytes=ended.done_bytes)
    return {}


async def _cancel_when_asked(work: OperationWork) -> None:
    """Passes a wish to cancel on to the repository, which may read for long without a word."""
    while not (await work.operation()).cancel_requested:  # noqa: ASYNC110  # a row of the catalogue sets no event
        await asyncio.sleep(CANCEL_SECONDS)
    await work.runtime.patiently(lambda: work.runtime.maintenance.cancel_verification(work.job_id))


async def judge(work: OperationWork) -> Outcome:
    """Says whether the point is sound."""
    operation = await work.operation()
    if operation.result["integrity"] == "corrupt":
        raise PointCorrupt(operation.backup_id, operation.result["damages"])
    await work.log("info", "judge", f"{operation.backup_id} is {operation.result['integrity']}")
    return {}


READ = Step("read", read, "stops reading; what was found is kept")
JUDGE = Step("judge", judge, cancellable=False)
STEPS = (READ, JUDGE)


@DBOS.workflow(name="verify", max_recovery_attempts=None)  # type: ignore[untyped-decorator]
async def verify(operation_id: str) -> str:
    """Runs a verification to its end."""
    return await execute(operation_id, _body)


async def _body(work: OperationWork) -> None:
    for step in STEPS:
        await run(work, step)


WORKFLOW = Workflow(VERIFY, verify, STEPS)
