"""What people do with policies: make, change, end, run now, and see what one would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sendense_backup.errors import BadPageToken
from sendense_backup.model import FULL, INCREMENTAL, KnownVm
from sendense_backup.policy import Policy, PolicyRules, next_run
from sendense_backup.store.history import VmHistory
from sendense_backup.store.policies import PolicyRun
from sendense_backup.workflows.runtime import Runtime
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError

NEXT_RUNS = 10


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """What a policy's next run would do with one VM. Sizes in bytes; -1 when not known."""

    known: KnownVm
    backup_type: str
    reason: str
    synthetic_full: bool
    estimated_bytes: int
    estimate_basis: str
    latest_backup_id: str
    removes: tuple[str, ...]
    freed_bytes: int
    running_job_id: str


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """What a policy would do."""

    policy: Policy
    next_runs: tuple[datetime, ...]
    vms: tuple[PlannedVm, ...]
    warnings: tuple[str, ...]
    next_page_token: str


class Policies:
    """The use cases.

    Args:
        runtime: The parts.
        clock: Tells the time; for tests.
    """

    def __init__(self, runtime: Runtime, clock: Callable[[], datetime] = utc_now) -> None:
        self._runtime = runtime
        self._clock = clock
        self.catalogue = runtime.catalogue

    async def create(self, name: str, cron: str, rules: PolicyRules, *, enabled: bool) -> Policy:
        """Makes a policy.

        Raises:
            BadPolicy: Something in it is wrong, or can never work.
            PolicyExists: Another one has the name.
            RemoteError: REPOSITORY_NOT_FOUND.
        """
        await self._check(cron, rules)
        return await self.catalogue.policies.create(name, cron, rules, enabled=enabled, moment=self._clock())

    async def replace(self, wanted: str, name: str, cron: str, rules: PolicyRules, *, enabled: bool) -> Policy:
        """Replaces all that a policy says; the errors are those of `create`, and PolicyNotFound."""
        known = await self.catalogue.policies.get(wanted)
        await self._check(cron, rules)
        return await self.catalogue.policies.replace(
            known.policy_id, name, cron, rules, enabled=enabled, moment=self._clock()
        )

    async def delete(self, wanted: str) -> None:
        """Ends a policy."""
        await self.catalogue.policies.delete((await self.catalogue.policies.get(wanted)).policy_id)

    async def run_now(self, wanted: str) -> PolicyRun:
        """Makes a run now."""
        policy = await self.catalogue.policies.get(wanted)
        run = await self.catalogue.policies.run_now(policy.policy_id, self._clock())
        self._runtime.tick.set()
        return run

    async def plan(self, wanted: str, vm_name: str, size: int, token: str) -> PolicyPlan:
        """Says when a policy runs next and what it would do, VM by VM.

        Raises:
            PolicyNotFound: There is none.
            NoAgent: No agent is connected, so that nobody knows the VMs.
        """
        if token and not token.isdecimal():
            raise BadPageToken
        policy = await self.catalogue.policies.get(wanted)
        moment = self._clock()
        runs: list[datetime] = []
        while policy.enabled and len(runs) < NEXT_RUNS:
            runs.append(next_run(policy.cron, policy.rules.time_zone, runs[-1] if runs else moment))
        warnings = [] if policy.enabled else ["the policy is disabled: it runs only when somebody asks"]
        meant = policy.rules.select(await self._runtime.agents.find_vms(vm_name))
        if not meant:
            warnings.append("no VM is meant now: look at the selectors, and whether the agent is connected")
        start = int(token or 0)
        page = meant[start : start + size]
        vms = await self._planned(policy, page, runs[0] if runs else moment, warnings)
        return PolicyPlan(
            policy=policy,
            next_runs=tuple(runs),
            vms=tuple(vms),
            warnings=tuple(warnings),
            next_page_token=str(start + size) if start + size < len(meant) else "",
        )

    async def _planned(
        self, policy: Policy, page: list[KnownVm], run_at: datetime, warnings: list[str]
    ) -> list[PlannedVm]:
        rules = policy.rules
        repository = await self._runtime.default_or(rules.repository)
        if not repository.enabled:
            warnings.append(f"repository '{repository.name}' is disabled")
        past = await self.catalogue.history.of([each.vm.ref for each in page], repository.repository_id)
        removes: dict[str, list[tuple[str, int]]] = {}
        if page and not rules.retention.keeps_everything:
            uuids = [each.vm.ref.vm_uuid.lower() for each in page]
            try:
                planned = await self._runtime.maintenance.plan_retention(
                    repository.repository_id, uuids, rules.retention
                )
            except SendenseError as error:
                warnings.append(f"what retention would remove cannot be said now: {error.message}")
            else:
                for point in planned.points:
                    if not point.keep:
                        removes.setdefault(point.vm_uuid.lower(), []).append((point.backup_id, point.stored_bytes))
        planned_vms = []
        for each in page:
            ref = each.vm.ref
            its_past = past.get(ref, VmHistory())
            planned_vms.append(self._planned_vm(rules, each, its_past, run_at, removes.get(ref.vm_uuid.lower(), [])))
        return planned_vms

    def _planned_vm(
        self, rules: PolicyRules, known: KnownVm, past: VmHistory, run_at: datetime, removes: list[tuple[str, int]]
    ) -> PlannedVm:
        last_full_at = past.full_at(synthetic=rules.synthetic_full)
        kind, reason = rules.type_of_next(last_full_at, run_at)
        if kind == INCREMENTAL and not known.vm.change_tracking_enabled:
            reason += "; change tracking is off, so disks are read fully"
        estimate, basis = past.estimate(kind)
        if estimate < 0 and kind == FULL and known.vm.disks:
            estimate, basis = sum(disk.capacity_bytes for disk in known.vm.disks), "capacity of the disks"
        due = last_full_at is not None and rules.full_is_due(last_full_at, run_at)
        return PlannedVm(
            known=known,
            backup_type=kind,
            reason=reason,
            synthetic_full=rules.synthetic_full and due,
            estimated_bytes=estimate,
            estimate_basis=basis,
            latest_backup_id=past.latest_backup_id,
            removes=tuple(backup_id for backup_id, _ in removes),
            freed_bytes=sum(size for _, size in removes),
            running_job_id=past.running_job_id,
        )

    async def _check(self, cron: str, rules: PolicyRules) -> None:
        rules.check()
        next_run(cron, rules.time_zone, self._clock() - timedelta(seconds=1))
        if rules.repository:
            await self._runtime.repository.repository(rules.repository)
