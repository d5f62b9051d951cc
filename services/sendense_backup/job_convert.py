"""Jobs of all kinds as messages."""

from __future__ import annotations

from typing import Any

from google.protobuf import struct_pb2

from sendense.backup.v1 import backup_pb2, job_pb2
from sendense_backup.convert import to_timestamp
from sendense_backup.model import BACKUP, Job, Operation
from sendense_backup.progress import eta_seconds, percent
from sendense_backup.store.all_jobs import AnyFilter, AnyJob


def to_any_job(job: AnyJob) -> job_pb2.Job:
    """Returns a job; with its progress as long as it has not ended."""
    return _backup(job) if isinstance(job, Job) else _operation(job)


def to_any_filter(request: job_pb2.ListJobsRequest) -> AnyFilter:
    """Returns what a list request filters by."""
    return AnyFilter(request.kind, request.status, request.vm_name, request.policy_id)


def _backup(job: Job) -> job_pb2.Job:
    arguments = {"backup_type": job.requested_type, "repository": job.repository, "quiesce": job.quiesce}
    result = {"backup_type": job.backup_type, "bytes_transferred": str(job.bytes_transferred)}
    return job_pb2.Job(
        job_id=job.backup_id,
        kind=BACKUP,
        backup_id=job.backup_id,
        arguments=_struct(arguments),
        result=_struct(result),
        progress=_progress(job, job.bytes_transferred),
        **_common(job),
    )


def _operation(operation: Operation) -> job_pb2.Job:
    return job_pb2.Job(
        job_id=operation.operation_id,
        kind=operation.kind,
        backup_id=operation.backup_id,
        arguments=_struct(operation.arguments),
        result=_struct(operation.result),
        progress=_progress(operation, operation.done_bytes),
        **_common(operation),
    )


def _common(job: AnyJob) -> dict[str, Any]:
    return {
        "status": job.status,
        "vm_name": job.vm_name,
        "policy_id": job.policy_id,
        "error_message": job.error_message if job.final else "",
        "error_reason": job.error_reason if job.final else "",
        "created_at": to_timestamp(job.created_at),
        "started_at": to_timestamp(job.started_at),
        "completed_at": to_timestamp(job.completed_at),
        "priority": job.priority,
        "retry_of": job.retry_of,
        "attempt": job.attempt,
    }


def _progress(job: AnyJob, done_bytes: int) -> backup_pb2.Progress | None:
    if job.final:
        return None
    return backup_pb2.Progress(
        phase=job.phase or ("waiting" if job.admitted_at is None else job.status),
        done_bytes=done_bytes,
        total_bytes=job.total_bytes,
        percent=percent(done_bytes, job.total_bytes),
        rate_bytes_per_second=job.rate_bytes_per_second,
        eta_seconds=eta_seconds(done_bytes, job.total_bytes, job.rate_bytes_per_second),
    )


def _struct(values: dict[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct
