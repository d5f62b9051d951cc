"""How a policy's run begins: its VMs are chosen, and a backup is queued for each.

A policy may mean ten thousand VMs, and five hundred policies may be due at midnight. So a tick of the scheduler queues
for a short time only, and the next goes on; agents are asked for their VMs once in a tick, and once for a run.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field

import structlog

from sendense_backup.aftercare import Budget, Clock, request_id
from sendense_backup.model import FULL, KnownVm, Repository, VmRef
from sendense_backup.policy import Policy
from sendense_backup.store.admission import NewJob
from sendense_backup.store.history import VmHistory
from sendense_backup.store.policies import RUNNING, PolicyRun
from sendense_backup.workflows.runtime import Runtime
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

LOOKED_UP = 200
"""How many VMs are looked up in the catalogue together."""


@dataclass
class _Beginning:
    """A run that begins: the VMs that it means, and why some were left out."""

    meant: Sequence[KnownVm]
    left_out: dict[VmRef, str] = field(default_factory=dict)


class Beginnings:
    """Queues the backups of runs that begin.

    Args:
        runtime: The parts.
        clock: Tells the time.
    """

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._catalogue = runtime.catalogue
        self._clock = clock
        # Who starts anew chooses the VMs again; those that have a backup of the run keep it.
        self._begun: dict[str, _Beginning] = {}
        self._inventory: list[KnownVm] | None = None

    def next_tick(self, run_ids: Collection[str]) -> None:
        """Says that a tick begins, and which runs have not ended."""
        self._begun = {run_id: each for run_id, each in self._begun.items() if run_id in run_ids}
        self._inventory = None

    async def queue(self, run: PolicyRun, policy: Policy, queued: Container[VmRef], budget: Budget) -> None:
        """Queues backups of a pending run until all are, which makes it a running one, or until the time is spent.

        Args:
            run: The run.
            policy: Its policy.
            queued: The VMs that have a backup of this run.
            budget: The tick's time.

        Raises:
            SendenseError: The agents or the repository cannot be asked now.
        """
        repository = await self._runtime.default_or(policy.rules.repository)
        beginning = self._begun.get(run.run_id)
        if beginning is None:
            if self._inventory is None:
                self._inventory = await self._runtime.agents.find_vms()
            beginning = self._begun[run.run_id] = _Beginning(policy.rules.select(self._inventory))
        left = [each for each in beginning.meant if each.vm.ref not in queued]
        left = [each for each in left if each.vm.ref not in beginning.left_out]
        for start in range(0, len(left), LOOKED_UP):
            some = left[start : start + LOOKED_UP]
            complete = await self._queue_some(run, policy, repository, some, beginning, budget)
            self._runtime.place_free.set()
            if not complete:
                return
        message = "; ".join(beginning.left_out.values())
        if not beginning.meant:
            message = "no VM is meant now: look at the policy's selectors"
        await self._catalogue.policies.write_run(
            run.run_id,
            status=RUNNING,
            vms_found=len(beginning.meant),
            summary={"skipped": len(beginning.left_out)},
            message=message,
            started_at=self._clock(),
        )

    async def _queue_some(
        self,
        run: PolicyRun,
        policy: Policy,
        repository: Repository,
        some: Sequence[KnownVm],
        beginning: _Beginning,
        budget: Budget,
    ) -> bool:
        """Queues backups of some VMs; False when the time is spent before all are."""
        past = await self._catalogue.history.of([each.vm.ref for each in some], repository.repository_id)
        for known in some:
            if not budget.take():
                return False
            ref = known.vm.ref
            try:
                await self._start(run, policy, repository, known, past.get(ref, VmHistory()))
            except SendenseError as error:
                beginning.left_out[ref] = f"{known.vm.name}: {error.message}"
                log.warning("a policy leaves a VM out", run=run.run_id, vm=known.vm.name, error=str(error))
        return True

    async def _start(
        self, run: PolicyRun, policy: Policy, repository: Repository, known: KnownVm, past: VmHistory
    ) -> None:
        rules, ref = policy.rules, known.vm.ref
        kind, _ = rules.type_of_next(past.full_at(synthetic=rules.synthetic_full), run.due_at)
        if kind != FULL and await self._runtime.repository.latest_point(repository.repository_id, ref.vm_uuid) is None:
            kind = FULL
        await self._catalogue.admission.admit(
            NewJob(
                vm_name=known.vm.name,
                ref=ref,
                agent_id=known.agent_id,
                requested_type=kind,
                repository=repository,
                quiesce=rules.quiesce,
                request_id=request_id(run, "b0", ref),
                priority=rules.priority,
                datastores=await self._runtime.datastores_of(known),
                policy_id=policy.policy_id,
                policy_run_id=run.run_id,
            ),
            self._clock(),
        )
