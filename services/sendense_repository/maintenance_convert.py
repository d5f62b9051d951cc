"""Between protobuf messages and deletions, consolidations and their plans."""

from __future__ import annotations

from sendense.repository.v1 import maintenance_pb2
from sendense_repository.convert import timestamp
from sendense_repository.deletion_plan import DeletionPlan, Estimate
from sendense_repository.merging import Merge
from sendense_repository.operations import Operation


def plan(planned: DeletionPlan) -> maintenance_pb2.DeletionPlan:
    """Returns a plan with its costs."""
    estimates = planned.estimates or [Estimate(0, 0)] * len(planned.merges)
    return maintenance_pb2.DeletionPlan(
        deleted_backup_ids=planned.backup_ids,
        merges=[_merge(merge, cost) for merge, cost in zip(planned.merges, estimates, strict=True)],
        freed_bytes=planned.freed_bytes,
        needed_bytes=planned.needed_bytes,
        holders=list(dict.fromkeys(holder for _, holder in planned.holders)),
    )


def _merge(merge: Merge, cost: Estimate) -> maintenance_pb2.LayerMerge:
    below = list(reversed(merge.merged[1:]))
    return maintenance_pb2.LayerMerge(
        disk_id=merge.child.disk_id,
        into_layer_id=merge.child.layer_id,
        into_backup_id=merge.child.backup_id,
        layer_ids=[layer.layer_id for layer in below],
        backup_ids=[layer.backup_id for layer in below],
        backup_type="full" if merge.is_full else "incremental",
        copied_bytes=cost.copied_bytes,
    )


def operation(running: Operation) -> maintenance_pb2.Operation:
    """Returns an operation as it is now."""
    message = maintenance_pb2.Operation(
        operation_id=running.operation_id,
        kind=running.request.kind,
        state=running.state,
        bytes_total=running.bytes_total,
        bytes_done=running.bytes_done,
        holders=list(running.course.waiting_for),
        freed_bytes=running.done.freed_bytes if running.done is not None else 0,
        started_at=timestamp(running.started_at),
        updated_at=timestamp(running.updated_at),
    )
    if running.course.plan is not None:
        message.plan.CopyFrom(plan(running.course.plan))
    if running.error is not None:
        message.error_reason = running.error.reason
        message.error_message = str(running.error)
        message.error_help = running.error.help
    return message
