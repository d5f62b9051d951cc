"""The gRPC edge of retention: each RPC converts, calls one use case, converts back."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from sendense.repository.v1 import retention_pb2, retention_pb2_grpc
from sendense_repository import convert
from sendense_repository.retention import Rules
from sendense_repository.retention_desk import RetentionDesk, RetentionPlan
from sendense_repository.store.retention import RetentionRun
from sendense_repository.unbroken import Unbroken


class RetentionServicer(retention_pb2_grpc.RetentionServiceServicer):
    """Implements RetentionService."""

    def __init__(self, desk: RetentionDesk, unbroken: Unbroken) -> None:
        self._desk = desk
        self._unbroken = unbroken

    async def PlanRetention(
        self, request: retention_pb2.PlanRetentionRequest, context: Any
    ) -> retention_pb2.RetentionPlan:
        """Says what would be kept and removed."""
        del context
        return _plan(await self._desk.plan(request.repository_id, list(request.vm_uuids), _rules(request.rules)))

    async def StartRetention(
        self, request: retention_pb2.StartRetentionRequest, context: Any
    ) -> retention_pb2.RetentionRun:
        """Does exactly a plan, or joins it."""
        del context
        plan = request.plan
        work = self._desk.start(
            convert.holder(request.holder),
            plan.repository_id,
            list(plan.vm_uuids),
            _rules(plan.rules),
            convert.moment(plan.as_of),
            plan.digest,
        )
        return _run(await self._unbroken.run(work))

    async def GetRetention(
        self, request: retention_pb2.GetRetentionRequest, context: Any
    ) -> retention_pb2.RetentionRun:
        """Returns a run."""
        del context
        return _run(await self._desk.get(request.run_id))


def _rules(message: retention_pb2.RetentionRules) -> Rules:
    return Rules(**{field.name: getattr(message, field.name) for field in fields(Rules)})


def _plan(plan: RetentionPlan) -> retention_pb2.RetentionPlan:
    return retention_pb2.RetentionPlan(
        digest=plan.digest,
        repository_id=plan.repository.repository_id,
        as_of=convert.timestamp(plan.as_of),
        points=[
            retention_pb2.PlannedPoint(
                backup_id=each.point.backup_id,
                vm_uuid=each.point.vm_uuid,
                vm_name=each.point.vm_name,
                sequence=each.point.sequence,
                committed_at=convert.timestamp(each.point.committed_at),
                keep=each.verdict.keep,
                rules=each.verdict.rules,
                stored_bytes=each.stored_bytes,
            )
            for each in plan.points
        ],
        freed_bytes=plan.freed_bytes,
        needed_bytes=plan.needed_bytes,
        vm_uuids=plan.vm_uuids,
        rules=retention_pb2.RetentionRules(**asdict(plan.rules)),
    )


def _run(run: RetentionRun) -> retention_pb2.RetentionRun:
    return retention_pb2.RetentionRun(
        run_id=run.run_id,
        digest=run.digest,
        state=run.state,
        removed_backup_ids=run.removed,
        remaining_backup_ids=run.remaining,
        freed_bytes=run.freed_bytes,
        error_reason=run.error_reason,
        error_message=run.error_message,
    )
