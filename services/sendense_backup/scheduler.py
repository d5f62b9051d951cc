"""The scheduler: takes up policies that are due and leads their runs to an end; starts sweeps.

Each replica ticks. What is due is taken in one transaction, so it is taken once; a run is a row, and each thing that it
starts carries a request id made of the run, the VM and the try. So a tick can be repeated by anybody at any time, after
a crash too: it finds what was started and starts what was not.

A run goes through: *pending* (`beginnings` queues a backup of each of its VMs), *running* (failed backups are tried
again; then, VM by VM, what `aftercare` knows), *completed*.

A tick is short whatever the size of the catalogue: it reads what unfinished runs have started, all of it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Self

import structlog

from sendense_backup.aftercare import Aftercare, Budget, Clock, request_id
from sendense_backup.beginnings import Beginnings
from sendense_backup.errors import BackupRunning
from sendense_backup.model import ACTIVE, COMPLETED, FAILED, SWEEP, VmRef
from sendense_backup.policy import Policy
from sendense_backup.store.admission import NewJob
from sendense_backup.store.jobs import Try
from sendense_backup.store.operations import NewOperation
from sendense_backup.store.policies import PENDING, RUNNING, PolicyRun
from sendense_backup.workflows.runtime import Runtime
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

PATIENCE = timedelta(hours=1)
"""How long a run waits for an agent and the repository before it fails."""

WORK_SECONDS = 0.25
"""For how long a tick starts backups and what follows them; the next one, at once, starts the rest."""

Tries = Mapping[VmRef, Sequence[Try]]


class Scheduler:
    """Ticks until it is left; an async context manager.

    Args:
        runtime: The parts.
        clock: Tells the time; for tests.
    """

    def __init__(self, runtime: Runtime, clock: Clock = utc_now) -> None:
        self._runtime = runtime
        self._catalogue = runtime.catalogue
        self._clock = clock
        self._beginnings = Beginnings(runtime, clock)
        self._aftercare = Aftercare(runtime, clock)
        self._task: asyncio.Task[None] | None = None
        self.ticked_at: datetime | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._runtime.tick.clear()
            try:
                await self.tick()
            except Exception:  # the catalogue may be away for a while: the next tick sees
                log.exception("a tick of the scheduler failed")
            try:
                async with asyncio.timeout(self._runtime.settings.tick_seconds):
                    await self._runtime.tick.wait()
            except TimeoutError:
                continue

    async def tick(self) -> None:
        """Takes up what is due, and leads each run as far as it goes now."""
        moment = self._clock()
        for run in await self._catalogue.policies.take_due(moment):
            log.info("policy is due", policy=run.policy_id, run=run.run_id, missed=run.missed)
        await self._catalogue.policies.note_look(moment)
        await self._sweep(moment)
        unfinished = await self._catalogue.policies.unfinished_runs()
        run_ids = [run.run_id for run, _ in unfinished]
        self._aftercare.forget_all_but(run_ids)
        self._beginnings.next_tick(run_ids)
        tries = await self._catalogue.jobs.tries_of(run_ids)
        known = await self._aftercare_of(unfinished, tries)
        budget = Budget(WORK_SECONDS)
        for run, policy in unfinished:
            its = tries.get(run.run_id, {})
            try:
                if run.status == RUNNING:
                    await self._go_on(run, policy, its, known, budget)
                elif not budget.is_spent:
                    await self._beginnings.queue(run, policy, its, budget)
                    self._runtime.tick.set()  # for the rest of its VMs, or for what comes next
            except SendenseError as error:
                log.warning("a policy's run cannot go on now", run=run.run_id, error=str(error))
                await self._catalogue.policies.write_run(run.run_id, message=error.message)
                if run.status == PENDING and moment - run.created_at > PATIENCE:
                    await self._catalogue.policies.write_run(run.run_id, status=FAILED, completed_at=moment)
        self.ticked_at = moment

    async def _sweep(self, moment: datetime) -> None:
        every = timedelta(minutes=self._runtime.settings.sweep_minutes)
        due_at = await self._catalogue.schedules.due(SWEEP, moment, every)
        if due_at is None:
            return
        if not any(each.kind == SWEEP for each in await self._catalogue.operations.active()):
            new = NewOperation(SWEEP, "all", request_id=f"sweep-{due_at:%Y%m%dT%H%M%S.%f}")
            await self._catalogue.operations.admit(new, moment)
            self._runtime.place_free.set()
        await self._catalogue.schedules.done(SWEEP, due_at, moment, every)

    async def _aftercare_of(
        self, unfinished: Sequence[tuple[PolicyRun, Policy]], tries: Mapping[str, Tries]
    ) -> Mapping[str, bool]:
        """Returns what was started after backups of these runs, as `Aftercare.follow` wants it."""
        waiting = [
            run
            for run, policy in unfinished
            if any(
                its[-1].status == COMPLETED and self._aftercare.is_wanted(run, policy.rules, ref)
                for ref, its in tries.get(run.run_id, {}).items()
            )
        ]
        if not waiting:
            return {}
        since = min(run.created_at for run in waiting)
        return await self._catalogue.operations.of_policies({run.policy_id for run in waiting}, since)

    async def _go_on(
        self, run: PolicyRun, policy: Policy, tries: Tries, known: Mapping[str, bool], budget: Budget
    ) -> None:
        """Retries what failed; when a VM's backup has ended for good, does what comes after it."""
        summary = {**run.summary, "completed": 0, "failed": 0, "retried": 0}
        busy = False
        for ref, its in tries.items():
            newest = its[-1]
            summary["retried"] += len(its) - 1
            if newest.status in ACTIVE:
                busy = True
            elif newest.status == COMPLETED:
                summary["completed"] += 1
                if self._aftercare.is_wanted(run, policy.rules, ref):
                    busy = not await self._aftercare.follow(run, policy, ref, newest.backup_id, known, budget) or busy
            elif await self._retry(run, policy, its):
                busy = True
            else:
                summary["failed"] += 1
        values: dict[str, object] = {"summary": summary}
        if not busy:
            values |= {"status": COMPLETED, "completed_at": self._clock()}
            log.info("a policy's run is complete", run=run.run_id, policy=policy.name, **summary)
        if busy is False or summary != run.summary:
            await self._catalogue.policies.write_run(run.run_id, **values)

    async def _retry(self, run: PolicyRun, policy: Policy, its: Sequence[Try]) -> bool:
        """Queues a further try of a failed backup; False when there is none to come."""
        if its[-1].status != FAILED or len(its) > policy.rules.retries:
            return False
        newest = await self._catalogue.running.read(its[-1].backup_id)
        ended_at = newest.completed_at or self._clock()
        new = NewJob(
            vm_name=newest.vm_name,
            ref=newest.ref,
            agent_id=newest.agent_id,
            requested_type=newest.requested_type,
            repository=await self._runtime.repository.repository(newest.repository_id),
            quiesce=newest.quiesce,
            request_id=request_id(run, f"b{len(its)}", newest.ref),
            priority=newest.priority,
            not_before=ended_at + timedelta(seconds=policy.rules.retry_pause_seconds),
            datastores=newest.datastores,
            policy_id=policy.policy_id,
            policy_run_id=run.run_id,
            retry_of=newest.backup_id,
        )
        try:
            await self._catalogue.admission.admit(new, self._clock())
        except BackupRunning:
            return True  # somebody else's job of the VM: the next tick tries
        await self._catalogue.log.write(
            newest.backup_id, "info", "retry", f"it is tried again after {policy.rules.retry_pause_seconds} seconds"
        )
        return True
