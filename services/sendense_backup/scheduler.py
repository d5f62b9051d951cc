"""The scheduler: takes up policies that are due and leads their runs to an end; starts sweeps.

Each replica ticks. What is due is taken in one transaction, so it is taken once; a run is a row, and each thing that it
starts carries a request id made of the run, the VM and the try. So a tick can be repeated by anybody at any time, after
a crash too: it finds what was started and starts what was not.

A run goes through: *pending* (its VMs are chosen and a backup is queued for each), *running* (failed backups are tried
again; then, VM by VM, one after the other: a synthetic full, retention, a verification), *completed*.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Self

import structlog

from sendense_backup.errors import BackupRunning
from sendense_backup.model import (
    COMPLETED,
    CONSOLIDATE,
    FAILED,
    FULL,
    RETENTION,
    SWEEP,
    VERIFY,
    Job,
    KnownVm,
    Repository,
    VmRef,
)
from sendense_backup.policy import Policy
from sendense_backup.store.admission import NewJob
from sendense_backup.store.history import VmHistory
from sendense_backup.store.operations import NewOperation
from sendense_backup.store.policies import PENDING, RUNNING, PolicyRun
from sendense_backup.workflows.runtime import Runtime
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

PATIENCE = timedelta(hours=1)
"""How long a run waits for an agent and the repository before it fails."""

Clock = Callable[[], datetime]


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
        for run in await self._catalogue.policies.unfinished_runs():
            try:
                await self._lead(run)
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

    async def _lead(self, run: PolicyRun) -> None:
        policy = await self._catalogue.policies.ended(run.policy_id)
        if run.status == PENDING:
            await self._begin(run, policy)
            run = await self._catalogue.policies.run(run.run_id)
        if run.status == RUNNING:
            await self._go_on(run, policy)

    async def _begin(self, run: PolicyRun, policy: Policy) -> None:
        """Queues a backup of each VM that is meant."""
        rules = policy.rules
        repository = await self._repository(policy)
        meant = rules.select(await self._runtime.agents.find_vms())
        past = await self._catalogue.history.of([each.vm.ref for each in meant], repository.repository_id)
        left_out: list[str] = []
        for known in meant:
            try:
                await self._start(run, policy, repository, known, past.get(known.vm.ref, VmHistory()))
            except SendenseError as error:
                left_out.append(f"{known.vm.name}: {error.message}")
                log.warning("a policy leaves a VM out", run=run.run_id, vm=known.vm.name, error=str(error))
        self._runtime.place_free.set()
        message = "; ".join(left_out) if meant else "no VM is meant now: look at the policy's selectors"
        await self._catalogue.policies.write_run(
            run.run_id,
            status=RUNNING,
            vms_found=len(meant),
            summary={"skipped": len(left_out)},
            message=message,
            started_at=self._clock(),
        )

    async def _start(
        self, run: PolicyRun, policy: Policy, repository: Repository, known: KnownVm, past: VmHistory
    ) -> None:
        rules = policy.rules
        has_point = await self._runtime.repository.latest_point(repository.repository_id, known.vm.ref.vm_uuid)
        kind, _ = rules.type_of_next(past.full_at(synthetic=rules.synthetic_full), run.due_at)
        if has_point is None:
            kind = FULL
        await self._catalogue.admission.admit(
            NewJob(
                vm_name=known.vm.name,
                ref=known.vm.ref,
                agent_id=known.agent_id,
                requested_type=kind,
                repository=repository,
                quiesce=rules.quiesce,
                request_id=_request(run, "b0", known.vm.ref),
                priority=rules.priority,
                datastores=await self._runtime.datastores_of(known),
                policy_id=policy.policy_id,
                policy_run_id=run.run_id,
            ),
            self._clock(),
        )

    async def _go_on(self, run: PolicyRun, policy: Policy) -> None:
        """Retries what failed; when a VM's backup has ended for good, does what comes after it."""
        tries: dict[VmRef, list[Job]] = {}
        for job in await self._catalogue.jobs.of_run(run.run_id):
            tries.setdefault(job.ref, []).append(job)
        summary = {**run.summary, "completed": 0, "failed": 0, "retried": 0}
        busy = False
        for ref, jobs in tries.items():
            newest = jobs[-1]
            summary["retried"] += len(jobs) - 1
            if not newest.final or await self._retry(run, policy, ref, jobs):
                busy = True
            elif newest.status == COMPLETED:
                summary["completed"] += 1
                busy = not await self._after(run, policy, newest) or busy
            else:
                summary["failed"] += 1
        values: dict[str, object] = {"summary": summary}
        if not busy:
            values |= {"status": COMPLETED, "completed_at": self._clock()}
            log.info("a policy's run is complete", run=run.run_id, policy=policy.name, **summary)
        if busy is False or summary != run.summary:
            await self._catalogue.policies.write_run(run.run_id, **values)

    async def _retry(self, run: PolicyRun, policy: Policy, ref: VmRef, jobs: list[Job]) -> bool:
        """Queues a further try of a failed backup; False when there is none to come."""
        newest = jobs[-1]
        if newest.status != FAILED or len(jobs) > policy.rules.retries:
            return False
        ended_at = newest.completed_at or self._clock()
        repository = await self._runtime.repository.repository(newest.repository_id)
        new = NewJob(
            vm_name=newest.vm_name,
            ref=ref,
            agent_id=newest.agent_id,
            requested_type=newest.requested_type,
            repository=repository,
            quiesce=newest.quiesce,
            request_id=_request(run, f"b{len(jobs)}", ref),
            priority=newest.priority,
            not_before=ended_at + timedelta(seconds=policy.rules.retry_pause_seconds),
            policy_id=policy.policy_id,
            policy_run_id=run.run_id,
            retry_of=newest.backup_id,
        )
        try:
            await self._catalogue.admission.admit(new, self._clock())
        except BackupRunning:
            return True  # somebody's else job of the VM: the next tick tries
        await self._catalogue.log.write(
            newest.backup_id, "info", "retry", f"it is tried again after {policy.rules.retry_pause_seconds} seconds"
        )
        return True

    async def _after(self, run: PolicyRun, policy: Policy, job: Job) -> bool:
        """Starts what comes after a VM's backup, one after the other; True when all of it has ended."""
        for kind, new in await self._aftercare(run, policy, job):
            started = await self._catalogue.operations.known_request(_request(run, kind, job.ref))
            if started is None:
                try:
                    await self._catalogue.operations.admit(new, self._clock())
                except BackupRunning:
                    return False
                self._runtime.place_free.set()
                return False
            if not started.final:
                return False
        return True

    async def _aftercare(self, run: PolicyRun, policy: Policy, job: Job) -> list[tuple[str, NewOperation]]:
        rules = policy.rules
        common: dict[str, object] = {
            "scope": job.vm_name,
            "vm_context_id": job.vm_context_id,
            "vm_name": job.vm_name,
            "repository_id": job.repository_id,
            "policy_id": policy.policy_id,
            "priority": rules.priority,
        }
        care: list[tuple[str, NewOperation]] = []
        if rules.synthetic_full and (first := await self._oldest_of_chain(policy, job)):
            arguments: dict[str, object] = {"first_backup_id": first, "last_backup_id": job.backup_id}
            care.append(("c", self._new(CONSOLIDATE, run, "c", job, arguments, common)))
        if not rules.retention.keeps_everything:
            arguments = {"vm_uuids": [job.ref.vm_uuid], "rules": asdict(rules.retention)}
            care.append(("r", self._new(RETENTION, run, "r", job, arguments, common)))
        if rules.verify_every_days and await self._verification_is_due(policy, job):
            care.append(("v", self._new(VERIFY, run, "v", job, {}, {**common, "backup_id": job.backup_id})))
        return care

    def _new(
        self, kind: str, run: PolicyRun, letter: str, job: Job, arguments: dict[str, object], common: dict[str, object]
    ) -> NewOperation:
        request = _request(run, letter, job.ref)
        return NewOperation(kind=kind, arguments=arguments, request_id=request, **common)  # type: ignore[arg-type]

    async def _oldest_of_chain(self, policy: Policy, job: Job) -> str:
        """Returns the oldest point of the VM's chain when a synthetic full of it is due; empty when none is."""
        known = await self._catalogue.operations.known_request(f"c-{job.policy_run_id[4:]}-{_short(job.ref)}")
        if known is not None:
            return str(known.arguments["first_backup_id"])
        past = (await self._catalogue.history.of([job.ref], job.repository_id)).get(job.ref)
        last_full_at = past.full_at(synthetic=True) if past is not None else None
        if last_full_at is None or not policy.rules.full_is_due(last_full_at, self._clock()):
            return ""
        chains = [each for each in await self._runtime.repository.chains(job.vm_context_id) if each.current]
        oldest = {each.full_backup_id for each in chains}
        # Disks whose chains begin at different points cannot be joined in one go.
        first = oldest.pop() if len(oldest) == 1 else ""
        return first if first != job.backup_id else ""

    async def _verification_is_due(self, policy: Policy, job: Job) -> bool:
        known = await self._catalogue.operations.known_request(f"v-{job.policy_run_id[4:]}-{_short(job.ref)}")
        if known is not None:
            return True
        since = self._clock() - timedelta(days=policy.rules.verify_every_days)
        return not await self._catalogue.operations.completed_since(VERIFY, job.vm_context_id, since)

    async def _repository(self, policy: Policy) -> Repository:
        name = policy.rules.repository or self._runtime.settings.default_repository
        return await self._runtime.repository.repository(name)


def _request(run: PolicyRun, letter: str, ref: VmRef) -> str:
    """Returns the id of a request that a run makes for a VM: the same again is the same request."""
    return f"{letter}-{run.run_id[4:]}-{_short(ref)}"


def _short(ref: VmRef) -> str:
    return ref.vm_uuid.replace("-", "").lower()
