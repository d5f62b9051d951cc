"""What a policy does after a VM's backup, one thing after the other: a synthetic full, retention, a verification.

Each is an operation with a request id made of the run, the VM and a letter. So the operations themselves say how far a
VM is: the last of them counts, and what comes after it is looked at when it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta

from sendense_backup.errors import BackupRunning
from sendense_backup.model import CONSOLIDATE, RETENTION, VERIFY, Job, VmRef
from sendense_backup.policy import Policy, PolicyRules
from sendense_backup.store.operations import NewOperation
from sendense_backup.store.policies import PolicyRun
from sendense_backup.workflows.runtime import Runtime

Clock = Callable[[], datetime]

_IN_ORDER = ("c", "r", "v")
"""Consolidation, retention, verification."""


class Budget:
    """The time that a tick has for starting things; it begins with the first of them, which is always started.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None

    @property
    def is_spent(self) -> bool:
        """Whether the rest is left to the next tick."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def take(self) -> bool:
        """Tells whether one more thing may be started."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
            return True
        return not self.is_spent


class Aftercare:
    """Starts what comes after backups.

    Args:
        runtime: The parts.
        clock: Tells the time.
    """

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._catalogue = runtime.catalogue
        self._clock = clock
        # Spares a look at what is done; a process that starts anew finds the same in the catalogue.
        self._done: dict[str, set[VmRef]] = {}

    def forget_all_but(self, run_ids: Collection[str]) -> None:
        """Forgets runs that have ended."""
        self._done = {run_id: done for run_id, done in self._done.items() if run_id in run_ids}

    def is_wanted(self, run: PolicyRun, rules: PolicyRules, ref: VmRef) -> bool:
        """Tells whether something may have to follow a VM's backup."""
        some = rules.synthetic_full or rules.verify_every_days or not rules.retention.keeps_everything
        return bool(some) and ref not in self._done.get(run.run_id, ())

    async def follow(
        self, run: PolicyRun, policy: Policy, ref: VmRef, backup_id: str, known: Mapping[str, bool], budget: Budget
    ) -> bool:
        """Starts what comes next after a VM's backup; True when all of it has ended.

        Args:
            run: The run.
            policy: Its policy.
            ref: The VM.
            backup_id: Its completed backup.
            known: Operations of the policy by their request's id, and whether each has ended.
            budget: The tick's time.
        """
        requests = [request_id(run, letter, ref) for letter in _IN_ORDER]
        started = [place for place, request in enumerate(requests) if request in known]
        if started and not known[requests[started[-1]]]:
            return False
        for letter in _IN_ORDER[started[-1] + 1 if started else 0 :]:
            if not budget.take():
                self._runtime.tick.set()
                return False
            new = await self._due(letter, run, policy, await self._catalogue.running.read(backup_id))
            if new is None:
                continue
            try:
                await self._catalogue.operations.admit(new, self._clock())
            except BackupRunning:
                return False  # somebody else's job of the VM: the next tick tries
            self._runtime.place_free.set()
            return False
        self._done.setdefault(run.run_id, set()).add(ref)
        return True

    async def _due(self, letter: str, run: PolicyRun, policy: Policy, job: Job) -> NewOperation | None:
        rules = policy.rules
        kind, backup_id = {"c": CONSOLIDATE, "r": RETENTION, "v": VERIFY}[letter], ""
        arguments: dict[str, object] = {}
        if letter == "c":
            first = await self._oldest_of_chain(policy, job) if rules.synthetic_full else ""
            if not first:
                return None
            arguments = {"first_backup_id": first, "last_backup_id": job.backup_id}
        elif letter == "r":
            if rules.retention.keeps_everything:
                return None
            arguments = {"vm_uuids": [job.ref.vm_uuid], "rules": asdict(rules.retention)}
        else:
            if not rules.verify_every_days or not await self._verification_is_due(rules, job):
                return None
            backup_id = job.backup_id
        return NewOperation(
            kind=kind,
            scope=job.vm_name,
            vm_context_id=job.vm_context_id,
            vm_name=job.vm_name,
            backup_id=backup_id,
            repository_id=job.repository_id,
            policy_id=policy.policy_id,
            arguments=arguments,
            request_id=request_id(run, letter, job.ref),
            priority=rules.priority,
        )

    async def _oldest_of_chain(self, policy: Policy, job: Job) -> str:
        """Returns the oldest point of the VM's chain when a synthetic full of it is due; empty when none is."""
        past = (await self._catalogue.history.of([job.ref], job.repository_id)).get(job.ref)
        last_full_at = past.full_at(synthetic=True) if past is not None else None
        if last_full_at is None or not policy.rules.full_is_due(last_full_at, self._clock()):
            return ""
        chains = [each for each in await self._runtime.repository.chains(job.vm_context_id) if each.current]
        oldest = {each.full_backup_id for each in chains}
        # Disks whose chains begin at different points cannot be joined in one go.
        first = oldest.pop() if len(oldest) == 1 else ""
        return first if first != job.backup_id else ""

    async def _verification_is_due(self, rules: PolicyRules, job: Job) -> bool:
        since = self._clock() - timedelta(days=rules.verify_every_days)
        return not await self._catalogue.operations.completed_since(VERIFY, job.vm_context_id, since)


def request_id(run: PolicyRun, letter: str, ref: VmRef) -> str:
    """Returns the id of a request that a run makes for a VM: the same again is the same request."""
    return f"{letter}-{run.run_id[4:]}-{ref.vm_uuid.replace('-', '').lower()}"
