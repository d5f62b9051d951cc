"""Rows as the domain's values."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Row, Select, select

from sendense_backup.model import Job, JobDisk, Operation, VmContext, VmRef
from sendense_backup.store.tables import contexts, jobs

_UNREAD = frozenset({"hardware_json", "snapshot_at", "request_id", "compression_enabled", "deleted_at"})
"""Columns that no `Job` shows: of a hundred jobs in a list, the hardware alone would be a megabyte."""

SELECT_JOBS: Select[Any] = select(
    *(column for column in jobs.c if column.name not in _UNREAD), contexts.c.vm_uuid, contexts.c.vcenter_uuid
).join(contexts, contexts.c.context_id == jobs.c.vm_context_id)
"""A job with its VM's identity."""


def to_context(row: Row[Any]) -> VmContext:
    """Returns a VM's context."""
    return VmContext(row.context_id, row.vm_name, VmRef(row.vcenter_uuid, row.vm_uuid), row.agent_id)


def to_disk(row: Row[Any]) -> JobDisk:
    """Returns a disk of a job."""
    values = row._asdict()
    del values["backup_id"]
    return JobDisk(**values)


def to_job(row: Row[Any], job_disks: tuple[JobDisk, ...] = ()) -> Job:
    """Returns a job from a row of `SELECT_JOBS`."""
    return Job(
        backup_id=row.id,
        vm_context_id=row.vm_context_id,
        vm_name=row.vm_name,
        ref=VmRef(row.vcenter_uuid, row.vm_uuid),
        agent_id=row.agent_id,
        backup_type=row.backup_type,
        requested_type=row.requested_type,
        status=row.status,
        repository_id=row.repository_id,
        repository=row.repository_name,
        repository_type=row.repository_type,
        repository_path=row.repository_path,
        parent_backup_id=row.parent_backup_id or "",
        change_id=row.change_id or "",
        bytes_transferred=row.bytes_transferred,
        total_bytes=row.total_bytes,
        error_message=row.error_message or "",
        error_reason=row.error_reason or "",
        quiesce=row.quiesce,
        cancel_requested=row.cancel_requested,
        attempt=row.attempt,
        phase=row.phase,
        rate_bytes_per_second=row.rate_bytes_per_second,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        priority=row.priority,
        not_before=row.not_before,
        admitted_at=row.admitted_at,
        policy_id=row.policy_id or "",
        policy_run_id=row.policy_run_id or "",
        retry_of=row.retry_of or "",
        exclude_disks=to_words(row.exclude_disks_json),
        datastores=to_words(row.datastores_json),
        consistency=row.consistency,
        consistency_note=row.consistency_note,
        alert=row.alert,
        disks=job_disks,
    )


def to_operation(row: Row[Any]) -> Operation:
    """Returns an operation."""
    return Operation(
        operation_id=row.id,
        kind=row.kind,
        status=row.status,
        vm_context_id=row.vm_context_id or "",
        vm_name=row.vm_name,
        backup_id=row.backup_id or "",
        repository_id=row.repository_id,
        policy_id=row.policy_id or "",
        arguments=json.loads(row.arguments_json),
        result=json.loads(row.result_json),
        error_message=row.error_message or "",
        error_reason=row.error_reason or "",
        cancel_requested=row.cancel_requested,
        attempt=row.attempt,
        phase=row.phase,
        done_bytes=row.done_bytes,
        total_bytes=row.total_bytes,
        rate_bytes_per_second=row.rate_bytes_per_second,
        priority=row.priority,
        retry_of=row.retry_of or "",
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        admitted_at=row.admitted_at,
    )


def to_words(text: str) -> tuple[str, ...]:
    """Returns words from JSON; mostly there are none."""
    return () if text == "[]" else tuple(json.loads(text))
