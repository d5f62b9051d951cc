"""What the repository service does to restore points besides making them: delete, consolidate, retain, verify."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sendense.repository.v1 import (
    integrity_pb2,
    layer_pb2,
    maintenance_pb2,
    maintenance_pb2_grpc,
    retention_pb2,
    retention_pb2_grpc,
    verification_pb2,
    verification_pb2_grpc,
)
from sendense_backup.model import Holder, RetentionRules
from sendense_rpc.channel import Peer

PLAN_SECONDS = 120.0

DONE = "done"
FAILED = "failed"
CANCELLED = "cancelled"
WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class DeletionPlan:
    """What a deletion would do. Sizes in bytes.

    Attributes:
        backup_ids: Points that go, newest first; empty when all are gone already.
        merged_into: Points that take layers in, so that they keep their content.
        holders: Who holds a point that is concerned now.
    """

    backup_ids: tuple[str, ...]
    merged_into: tuple[str, ...]
    freed_bytes: int
    needed_bytes: int
    holders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progressing:
    """Something that the repository does, as it is now. Sizes in bytes.

    Attributes:
        state: `running`, `waiting`, `done`, `cancelled` or `failed`.
        holders: Who is waited for.
        backup_ids: The points that went, or that it is about.
        facts: What else its end says; JSON values.
        reason: When it failed: the word from docs/errors.md.
    """

    state: str
    done_bytes: int = 0
    total_bytes: int = 0
    holders: tuple[str, ...] = ()
    backup_ids: tuple[str, ...] = ()
    freed_bytes: int = 0
    facts: dict[str, object] = field(default_factory=dict)
    reason: str = ""
    message: str = ""
    help: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (DONE, FAILED, CANCELLED)


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A restore point in a retention plan; `rules` say why it stays."""

    backup_id: str
    vm_uuid: str
    keep: bool
    rules: tuple[str, ...]
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What rules do to the points of VMs. `as_of` and `digest` stand for all of it."""

    repository_id: str
    vm_uuids: tuple[str, ...]
    rules: RetentionRules
    as_of: datetime
    digest: str
    freed_bytes: int
    points: tuple[PlannedPoint, ...] = ()


class MaintenanceClient:
    """The repository service's gRPC services for restore points that exist."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._maintenance = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
        self._retention = retention_pb2_grpc.RetentionServiceStub(peer.channel)
        self._verification = verification_pb2_grpc.VerificationServiceStub(peer.channel)

    async def plan_deletion(self, backup_ids: Sequence[str], *, cascade: bool) -> DeletionPlan:
        """Returns what a deletion would do; POINT_NOT_FOUND for a point that never was."""
        request = maintenance_pb2.PlanDeletionRequest(backup_ids=backup_ids, cascade=cascade)
        plan = await self._peer.call(self._maintenance.PlanDeletion, request, timeout=PLAN_SECONDS)
        return DeletionPlan(
            backup_ids=tuple(plan.deleted_backup_ids),
            merged_into=tuple(dict.fromkeys(merge.into_backup_id for merge in plan.merges)),
            freed_bytes=plan.freed_bytes,
            needed_bytes=plan.needed_bytes,
            holders=tuple(plan.holders),
        )

    async def start_deletion(
        self, backup_ids: Sequence[str], holder: Holder, *, cascade: bool, wait_seconds: int
    ) -> Progressing:
        """Starts or joins the deletion of points."""
        request = maintenance_pb2.StartDeletionRequest(
            holder=_holder(holder), backup_ids=backup_ids, cascade=cascade, wait_seconds=wait_seconds
        )
        return _operation(await self._peer.call(self._maintenance.StartDeletion, request, timeout=PLAN_SECONDS))

    async def start_consolidation(self, first: str, last: str, holder: Holder, *, wait_seconds: int) -> Progressing:
        """Starts or joins the consolidation of a run of points into the last of them."""
        request = maintenance_pb2.StartConsolidationRequest(
            holder=_holder(holder), first_backup_id=first, last_backup_id=last, wait_seconds=wait_seconds
        )
        return _operation(await self._peer.call(self._maintenance.StartConsolidation, request, timeout=PLAN_SECONDS))

    async def watch_operation(self, operation_id: str) -> AsyncIterator[Progressing]:
        """Yields a deletion or consolidation at each change; OPERATION_NOT_FOUND: start it again."""
        request = maintenance_pb2.GetOperationRequest(operation_id=operation_id)
        async with aclosing(self._peer.stream(self._maintenance.WatchOperation, request)) as states:  # type: ignore[type-var]
            async for state in states:
                yield _operation(state)

    async def plan_retention(self, repository_id: str, vm_uuids: Sequence[str], rules: RetentionRules) -> RetentionPlan:
        """Returns what rules would keep and remove of VMs' points."""
        request = retention_pb2.PlanRetentionRequest(
            repository_id=repository_id, vm_uuids=vm_uuids, rules=_rules(rules)
        )
        plan = await self._peer.call(self._retention.PlanRetention, request, timeout=PLAN_SECONDS)
        return RetentionPlan(
            repository_id=plan.repository_id,
            vm_uuids=tuple(plan.vm_uuids),
            rules=rules,
            as_of=plan.as_of.ToDatetime(UTC),
            digest=plan.digest,
            freed_bytes=plan.freed_bytes,
            points=tuple(
                PlannedPoint(each.backup_id, each.vm_uuid, each.keep, tuple(each.rules), each.stored_bytes)
                for each in plan.points
            ),
        )

    async def start_retention(self, plan: RetentionPlan, holder: Holder) -> Progressing:
        """Starts or joins a plan; PLAN_CHANGED when it is not right any more."""
        message = retention_pb2.RetentionPlan(
            digest=plan.digest, repository_id=plan.repository_id, vm_uuids=plan.vm_uuids, rules=_rules(plan.rules)
        )
        message.as_of.FromDatetime(plan.as_of)
        request = retention_pb2.StartRetentionRequest(holder=_holder(holder), plan=message)
        return _run(await self._peer.call(self._retention.StartRetention, request, timeout=PLAN_SECONDS))

    async def retention(self, run_id: str) -> Progressing:
        """Returns a retention run as it is now; RETENTION_NOT_FOUND: start it again."""
        request = retention_pb2.GetRetentionRequest(run_id=run_id)
        return _run(await self._peer.call(self._retention.GetRetention, request))

    async def start_verification(
        self, verification_id: str, backup_id: str, *, bytes_per_second: int, max_age_seconds: int
    ) -> Progressing:
        """Starts or joins the reading back of a point."""
        request = verification_pb2.StartVerificationRequest(
            verification_id=verification_id,
            backup_id=backup_id,
            bytes_per_second=bytes_per_second,
            max_age_seconds=max_age_seconds,
        )
        started = await self._peer.call(self._verification.StartVerification, request, timeout=PLAN_SECONDS)
        return _verification(started)

    async def watch_verification(self, verification_id: str) -> AsyncIterator[Progressing]:
        """Yields a verification at each change; VERIFICATION_NOT_FOUND: start it again."""
        request = verification_pb2.GetVerificationRequest(verification_id=verification_id)
        async with aclosing(self._peer.stream(self._verification.WatchVerification, request)) as states:  # type: ignore[type-var]
            async for state in states:
                yield _verification(state)

    async def cancel_verification(self, verification_id: str) -> None:
        """Stops a verification at its next chunk."""
        request = verification_pb2.CancelVerificationRequest(verification_id=verification_id)
        await self._peer.call(self._verification.CancelVerification, request)


def _holder(holder: Holder) -> layer_pb2.Holder:
    return layer_pb2.Holder(job_id=holder.job_id, attempt=holder.attempt)


def _rules(rules: RetentionRules) -> retention_pb2.RetentionRules:
    return retention_pb2.RetentionRules(
        keep_last=rules.keep_last,
        keep_hourly=rules.keep_hourly,
        keep_daily=rules.keep_daily,
        keep_weekly=rules.keep_weekly,
        keep_monthly=rules.keep_monthly,
        keep_yearly=rules.keep_yearly,
        min_age_seconds=rules.min_age_seconds,
        time_zone=rules.time_zone,
    )


def _operation(message: maintenance_pb2.Operation) -> Progressing:
    return Progressing(
        state=message.state,
        done_bytes=message.bytes_done,
        total_bytes=message.bytes_total,
        holders=tuple(message.holders),
        backup_ids=tuple(message.plan.deleted_backup_ids),
        freed_bytes=message.freed_bytes,
        facts={"merged_into": list(dict.fromkeys(merge.into_backup_id for merge in message.plan.merges))},
        reason=message.error_reason,
        message=message.error_message,
        help=message.error_help,
    )


def _run(message: retention_pb2.RetentionRun) -> Progressing:
    removed, left = len(message.removed_backup_ids), len(message.remaining_backup_ids)
    return Progressing(
        state=message.state,
        backup_ids=tuple(message.removed_backup_ids),
        freed_bytes=message.freed_bytes,
        facts={"removed": removed, "remaining": left},
        reason=message.error_reason,
        message=message.error_message,
    )


def _verification(message: verification_pb2.Verification) -> Progressing:
    integrity = message.integrity
    return Progressing(
        state=message.state,
        done_bytes=message.done_bytes,
        total_bytes=message.total_bytes,
        backup_ids=(message.backup_id,),
        facts={"integrity": integrity.state, "damages": [_damage(each) for each in integrity.damages[:_DAMAGES]]},
        reason=message.error_reason,
        message=message.error_message,
    )


_DAMAGES = 10
"""How many damaged ranges a job's result lists; the restore point itself lists more."""


def _damage(damage: integrity_pb2.Damage) -> str:
    return f"{damage.backup_id} disk {damage.disk_id}, {damage.part} at {damage.offset}: {damage.finding}"
