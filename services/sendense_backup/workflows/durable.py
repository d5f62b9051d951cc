"""Steps on DBOS: each runs once as far as its outcome is recorded, and from its beginning when it is not.

What always holds (platform-facts, DBOS): a step returns an outcome, an error too, because a raised error with keyword
attributes does not survive its replay; an execution that was taken over leaves by `TakenOver`, a BaseException, so that
neither DBOS records it nor anything is undone for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from dbos import DBOS

from sendense_backup.errors import Cancelled, Superseded
from sendense_backup.workflows.runtime import Execution
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

APPLICATION_VERSION = "backup-2"
"""Raised when the steps of a workflow change: DBOS recovers only what its own version began."""

ENDED = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})
"""Statuses of workflows that do nothing any more."""

STALE_ATTEMPT = "STALE_ATTEMPT"

Outcome = dict[str, Any]
"""What a step returns: JSON."""


class TakenOver(BaseException):  # like CancelledError, it is no error of the job
    """A newer attempt owns the job; this execution stops without undoing anything."""


class StepFailed(Exception):
    """A step returned a failure.

    Attributes:
        step: Its name.
        reason: UPPER_SNAKE word from docs/errors.md.
        message: What is wrong, for people.
        help: What can be done; may be empty.
    """

    def __init__(self, step: str, reason: str, message: str, help: str) -> None:  # noqa: A002
        super().__init__(f"{step}: {message}")
        self.step = step
        self.reason = reason
        self.message = message
        self.help = help


@dataclass(frozen=True)
class Workflow:
    """A workflow as tests and the engine see it: its name, and its steps in order.

    Attributes:
        name: Of the DBOS workflow; for operations their kind.
        run: The DBOS workflow; takes the job's id.
        steps: All steps; tests fail and kill at each of them.
    """

    name: str
    run: Callable[[str], Awaitable[str]]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Step:
    """A step of a workflow.

    Attributes:
        name: Shown as the job's phase and in its log.
        do: Does it; idempotent, starts or joins its resource.
        undo: What takes it back, for people: `release` does it, from the lease rows.
        cancellable: Whether a wish to cancel stops the job before this step.
        per_disk: Whether it is done for each disk; its recorded name then ends in the disk's position.
    """

    name: str
    do: Callable[..., Awaitable[Outcome]]
    undo: str = "nothing to undo"
    cancellable: bool = True
    per_disk: bool = False


async def run(work: Execution, step: Step, *arguments: int | str) -> Outcome:
    """Runs a step durably, or returns what it returned before.

    Args:
        work: The execution.
        step: The step.
        arguments: Ids; the first one, a disk's position, becomes part of the step's name.

    Raises:
        StepFailed: It failed, now or before.
        TakenOver: A newer attempt owns the job.
    """
    name = ".".join([step.name, *(str(each) for each in arguments[:1])])
    outcome: Outcome = await DBOS.run_step_async({"name": name}, _outlasting, name, work, step, *arguments)
    await work.runtime.observer.recorded(work.job_id, name)
    if "failed" in outcome:
        failed = outcome["failed"]
        raise StepFailed(step.name, failed["reason"], failed["message"], failed["help"])
    return outcome


async def _outlasting(name: str, work: Execution, step: Step, *arguments: int | str) -> Outcome:
    """Does a step, from its beginning again when the database went away in the middle of it."""
    return await work.runtime.outlasting(lambda: _execute(name, work, step, *arguments))


async def _execute(name: str, work: Execution, step: Step, *arguments: int | str) -> Outcome:
    structlog.contextvars.bind_contextvars(job=work.job_id, attempt=work.attempt)
    try:
        position = int(arguments[0]) if step.per_disk else None
        cancel = await work.enter(step.name, position)
        if cancel and step.cancellable:
            raise Cancelled(work.job_id)  # noqa: TRY301  # becomes an outcome like any other failure
        await work.runtime.observer.begins(work.job_id, name)
        outcome = await step.do(work, *arguments)
        await work.runtime.observer.executed(work.job_id, name)
    except Superseded as error:
        raise TakenOver(str(error)) from error
    except SendenseError as error:
        if error.reason == STALE_ATTEMPT:
            raise TakenOver(str(error)) from error
        outcome = _failure(error.reason, error.message, error.help)
    except Exception as error:  # a defect of ours must end as a failed job, not as a job that never ends
        if work.runtime.catalogue.database.is_outage(error):
            raise
        log.exception("unexpected error in a step", step=step.name)
        outcome = _failure("INTERNAL", f"unexpected {type(error).__name__} in step {step.name}", "See the log.")
    return outcome


def _failure(reason: str, message: str, help_text: str) -> Outcome:
    return {"failed": {"reason": reason, "message": message, "help": help_text}}
