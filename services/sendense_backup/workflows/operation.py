"""The frame of all operations on restore points: claim, start, steps, end.

What always holds: an operation acquires nothing of its own. What takes long belongs to the service that does it,
started or joined under the operation's id, and that service either leaves everything as it was or finishes it (DESIGN
4). So there is nothing to undo when an operation fails, and a wish to cancel counts until the step that changes
something.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from sendense_backup.errors import Superseded
from sendense_backup.model import CANCELLED, COMPLETED, FAILED, PENDING, Holder, Operation
from sendense_backup.store import Catalogue
from sendense_backup.workflows.durable import StepFailed, TakenOver
from sendense_backup.workflows.runtime import Runtime, current, tracked

log = structlog.get_logger()


@dataclass(frozen=True)
class OperationWork:
    """One execution of an operation.

    Attributes:
        runtime: The parts.
        job_id: The operation.
        attempt: Claimed by this execution alone; carried by each mutation, so that services refuse older ones.
    """

    runtime: Runtime = field(repr=False)
    job_id: str
    attempt: int

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue."""
        return self.runtime.catalogue

    @property
    def holder(self) -> Holder:
        """The fencing token of this execution."""
        return Holder(self.job_id, self.attempt)

    async def operation(self) -> Operation:
        """Returns the operation as it is now."""
        return await self.catalogue.operations.read(self.job_id)

    async def enter(self, phase: str, position: int | None = None) -> bool:
        """Records the step that it is at; returns whether somebody asked it to stop."""
        del position  # an operation has no disks of its own
        return await self.catalogue.operations.enter(self.job_id, self.attempt, phase)

    async def log(self, level: str, step: str, message: str, **data: object) -> None:
        """Adds a line to the operation's log."""
        await self.catalogue.operation_log.write(self.job_id, level, step, message, attempt=self.attempt, **data)

    async def add_result(self, **values: object) -> None:
        """Adds to what was done so far."""
        result = {**(await self.operation()).result, **values}
        await self.catalogue.operations.set_result(self.job_id, self.attempt, result)


Body = Callable[[OperationWork], Awaitable[None]]
"""The steps of an operation, in their order."""


async def execute(operation_id: str, body: Body) -> str:
    """Runs an operation to its end.

    Returns:
        How this execution ended, for the record: the operation's fate is in the catalogue.
    """
    with tracked():
        runtime = current()
        try:
            return await _execute(runtime, operation_id, body)
        finally:
            runtime.job_ended()


async def _execute(runtime: Runtime, operation_id: str, body: Body) -> str:
    operations = runtime.catalogue.operations
    outlasting = runtime.outlasting
    attempt = await outlasting(lambda: operations.claim(operation_id))
    if attempt is None:
        return "had ended"
    work = OperationWork(runtime, operation_id, attempt)
    try:
        if attempt > runtime.settings.max_attempts:
            raise StepFailed(  # noqa: TRY301
                "start", "TOO_MANY_ATTEMPTS", f"the process died {attempt - 1} times while this ran", "See the log."
            )
        await outlasting(lambda: _begin(work))
        await body(work)
        await outlasting(lambda: _complete(work))
    except StepFailed as failure:
        failed = failure
        return await outlasting(lambda: _fail(work, failed))
    except (TakenOver, Superseded):
        log.warning("taken over", job=operation_id)
        return "taken over"
    except Exception as error:
        log.exception("unexpected error in the workflow", job=operation_id)
        defect = StepFailed("workflow", "INTERNAL", f"unexpected {type(error).__name__}", "See the log.")
        return await outlasting(lambda: _fail(work, defect))
    return COMPLETED


async def _begin(work: OperationWork) -> None:
    if (await work.operation()).status == PENDING:
        await work.log("info", "start", "it begins")
    else:
        await work.log("warning", "start", "it goes on after the service had ended")
    await work.catalogue.operations.start(work.job_id, work.attempt)


async def _complete(work: OperationWork) -> None:
    await work.log("info", "end", "it is complete")
    await work.catalogue.operations.end(work.job_id, work.attempt, COMPLETED)


async def _fail(work: OperationWork, failure: StepFailed) -> str:
    cancelled = failure.reason == "CANCELLED"
    message = f"{failure.message}. {failure.help}".strip() if failure.help else failure.message
    status = CANCELLED if cancelled else FAILED
    try:
        await work.log("info" if cancelled else "error", failure.step, failure.message, reason=failure.reason)
        await work.catalogue.operations.end(work.job_id, work.attempt, status, failure.reason, message)
    except Superseded:
        return "taken over"
    return status
