"""The caretaker: what no workflow looks after any more is found from the catalogue and brought to an end.

It starts every release: of jobs that failed (it is told at once) and of jobs that ended and still hold something. It
queues jobs whose process died between the catalogue's row and the queue, and ends those whose workflow is gone or was
begun by another version. It says what it did in the job's log.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Self

import structlog

from sendense_backup.errors import Superseded
from sendense_backup.model import BACKUP, FAILED, Job, Operation
from sendense_backup.workflows.durable import APPLICATION_VERSION, ENDED
from sendense_backup.workflows.engine import Engine
from sendense_backup.workflows.release import RELEASE_PHASE, release_id
from sendense_backup.workflows.runtime import Runtime, Work

log = structlog.get_logger()


LONGEST_PAUSE_SECONDS = 300.0
"""What cannot be given back (its agent is gone for days) is tried this often."""


@dataclass(frozen=True, slots=True)
class _Round:
    """A try to give back what a job holds: its workflow, when the next may begin, and the pause after that."""

    workflow_id: str
    not_before: float
    pause: float


class Caretaker:
    """Looks at all jobs every `sweep_seconds`, and at once when one was handed over; an async context manager.

    Args:
        runtime: The parts.
        engine: Starts workflows and knows their states.
    """

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self._runtime = runtime
        self._engine = engine
        self._rounds: dict[str, _Round] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            self._runtime.handed_over.clear()
            try:
                await self.sweep()
            except Exception:  # the catalogue may be away for a while: the next round sees
                log.exception("a round of the caretaker failed")
            try:
                async with asyncio.timeout(self._runtime.settings.sweep_seconds):
                    await self._runtime.handed_over.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> None:
        """Goes over all jobs once."""
        jobs = await self._runtime.catalogue.jobs.active()
        running = [each for each in jobs if each.phase != RELEASE_PHASE and each.admitted_at is not None]
        operations = [
            each for each in await self._runtime.catalogue.operations.active() if each.admitted_at is not None
        ]
        # All at once: hundreds of jobs may run, and each look at a workflow is a transaction of its own.
        ids = [*(each.backup_id for each in running), *(each.operation_id for each in operations)]
        states = await self._engine.states(ids)
        for job in jobs:
            if job.phase == RELEASE_PHASE:
                await self._release(job)
        for job in running:
            await self._look_after(job, *states.get(job.backup_id, ("", "")))
        for operation in operations:
            await self._look_after_operation(operation, *states.get(operation.operation_id, ("", "")))
        left = await self._runtime.catalogue.leases.left_behind()
        self._rounds = {backup_id: each for backup_id, each in self._rounds.items() if backup_id in left}
        for backup_id in left:
            await self._give_back(backup_id)

    async def _look_after(self, job: Job, status: str, version: str) -> None:
        if not status:
            await self._engine.enqueue(job.backup_id, BACKUP)
        elif status in ENDED:
            # The job may have ended, or been handed over, between our two looks.
            now = await self._runtime.catalogue.running.read(job.backup_id)
            if not now.final and now.phase != RELEASE_PHASE:
                await self._abandon(job, "WORKFLOW_LOST", "its workflow ended without ending the job")
        elif version and version != APPLICATION_VERSION:
            await self._abandon(job, "UPGRADED", f"it was begun by version {version} of the service")

    async def _abandon(self, job: Job, reason: str, why: str) -> None:
        running = self._runtime.catalogue.running
        try:
            attempt = await running.claim(job.backup_id, expected=job.attempt)
            if attempt is None:
                return
            work = Work(self._runtime, job.backup_id, attempt)
            await work.set_job(phase=RELEASE_PHASE, error_reason=reason, error_message=f"the job was given up: {why}")
            await work.log("error", "sweep", f"the job is given up: {why}", reason=reason)
        except Superseded:
            return
        await self._release(job)

    async def _look_after_operation(self, operation: Operation, status: str, version: str) -> None:
        if not status:
            await self._engine.enqueue(operation.operation_id, operation.kind)
        elif status in ENDED:
            if not (await self._runtime.catalogue.operations.read(operation.operation_id)).final:
                await self._abandon_operation(operation, "WORKFLOW_LOST", "its workflow ended without ending the job")
        elif version and version != APPLICATION_VERSION:
            why = f"it was begun by version {version} of the service"
            await self._abandon_operation(operation, "UPGRADED", why)

    async def _abandon_operation(self, operation: Operation, reason: str, why: str) -> None:
        operations = self._runtime.catalogue.operations
        try:
            attempt = await operations.claim(operation.operation_id, expected=operation.attempt)
            if attempt is None:
                return
            message = f"the job was given up: {why}. Start it again: sendense-ctl job retry"
            await operations.end(operation.operation_id, attempt, FAILED, reason, message)
        except Superseded:
            return
        await self._runtime.catalogue.operation_log.write(
            operation.operation_id, "error", "sweep", f"the job is given up: {why}", reason=reason
        )

    async def _release(self, job: Job) -> None:
        first = release_id(job.backup_id)
        status = await self._engine.status(first)
        if not status:
            await self._engine.release(job.backup_id, first)
        elif status in ENDED and not (await self._runtime.catalogue.running.read(job.backup_id)).final:
            await self._give_back(job.backup_id)

    async def _give_back(self, backup_id: str) -> None:
        """Starts a further round for what a job could not give back, with growing pauses."""
        last = self._rounds.get(backup_id, _Round(release_id(backup_id), 0.0, self._runtime.settings.sweep_seconds))
        if time.monotonic() < last.not_before:
            return
        status = await self._engine.status(last.workflow_id)
        if status and status not in ENDED:
            return
        attempt = (await self._runtime.catalogue.running.read(backup_id)).attempt
        following = _Round(
            workflow_id=release_id(backup_id, attempt + 1),
            not_before=time.monotonic() + last.pause,
            pause=min(2 * last.pause, LONGEST_PAUSE_SECONDS),
        )
        self._rounds[backup_id] = following
        await self._engine.release(backup_id, following.workflow_id)
