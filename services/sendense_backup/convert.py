"""Values as messages."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.backup.v1 import backup_pb2
from sendense_backup.model import COMPLETED, FULL, RUNNING, Chain, Job, JobDisk, KnownVm, VmContext
from sendense_backup.progress import eta_seconds, percent
from sendense_backup.store.job_log import LogEntry
from sendense_backup.store.jobs import JobFilter

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


def page_size(asked: int) -> int:
    """Returns how many entries a page has: 100 unless asked otherwise, at most 1000."""
    return min(asked, LARGEST_PAGE) if asked > 0 else DEFAULT_PAGE


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """Returns a moment as a message; None stays unset."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def to_backup(job: Job) -> backup_pb2.Backup:
    """Returns a job; with its progress as long as it has not ended."""
    return backup_pb2.Backup(
        backup_id=job.backup_id,
        vm_context_id=job.vm_context_id,
        vm_name=job.vm_name,
        backup_type=job.backup_type,
        status=job.status,
        repository=job.repository,
        repository_type=job.repository_type,
        repository_path=job.repository_path,
        parent_backup_id=job.parent_backup_id,
        change_id=job.change_id,
        bytes_transferred=job.bytes_transferred,
        total_bytes=job.total_bytes,
        error_message=job.error_message if job.final else "",
        error_reason=job.error_reason if job.final else "",
        created_at=to_timestamp(job.created_at),
        started_at=to_timestamp(job.started_at),
        completed_at=to_timestamp(job.completed_at),
        disks=[_disk(each) for each in job.disks],
        progress=None if job.final else _progress(job),
        consistency=job.consistency,
        consistency_note=job.consistency_note,
        alert=job.alert,
        exclude_disks=job.exclude_disks,
    )


def _progress(job: Job) -> backup_pb2.Progress:
    return backup_pb2.Progress(
        phase=job.phase or ("waiting" if job.admitted_at is None else job.status),
        done_bytes=job.bytes_transferred,
        total_bytes=job.total_bytes,
        percent=percent(job.bytes_transferred, job.total_bytes),
        rate_bytes_per_second=job.rate_bytes_per_second,
        eta_seconds=eta_seconds(job.bytes_transferred, job.total_bytes, job.rate_bytes_per_second),
    )


def _disk(disk: JobDisk) -> backup_pb2.BackupDisk:
    return backup_pb2.BackupDisk(
        disk_id=disk.disk_id,
        label=disk.label,
        backup_type=disk.backup_type,
        reason=disk.reason,
        path=disk.path if disk.status == COMPLETED else "",
        capacity_bytes=disk.capacity_bytes,
        changed_bytes=disk.changed_bytes,
        total_bytes=disk.total_bytes,
        bytes_transferred=disk.bytes_transferred,
        change_id=disk.change_id,
        status=disk.status,
        progress=_disk_progress(disk) if disk.status == RUNNING else None,
    )


def _disk_progress(disk: JobDisk) -> backup_pb2.Progress:
    return backup_pb2.Progress(
        phase=disk.phase or disk.status,
        done_bytes=disk.bytes_transferred,
        total_bytes=disk.total_bytes,
        percent=percent(disk.bytes_transferred, disk.total_bytes),
        rate_bytes_per_second=disk.rate_bytes_per_second,
        eta_seconds=eta_seconds(disk.bytes_transferred, disk.total_bytes, disk.rate_bytes_per_second),
    )


def to_filter(request: backup_pb2.ListBackupsRequest) -> JobFilter:
    """Returns what a list request filters by."""
    return JobFilter(
        vm_name=request.vm_name,
        status=request.status,
        backup_type=request.backup_type,
        created_after=request.created_after.ToDatetime(UTC) if request.HasField("created_after") else None,
        created_before=request.created_before.ToDatetime(UTC) if request.HasField("created_before") else None,
    )


def to_chain(context: VmContext, chains: list[Chain]) -> backup_pb2.GetChainResponse:
    """Returns a VM's chains."""
    return backup_pb2.GetChainResponse(
        vm_name=context.vm_name,
        vm_context_id=context.context_id,
        chains=[_chain(each) for each in chains],
        total_size_bytes=sum(each.total_size_bytes for each in chains),
    )


def _chain(chain: Chain) -> backup_pb2.DiskChain:
    made_by = {layer.layer_id: layer.backup_id for layer in chain.layers}
    return backup_pb2.DiskChain(
        chain_id=chain.chain_id,
        disk_id=chain.disk_id,
        full_backup_id=chain.full_backup_id,
        latest_backup_id=chain.latest_backup_id,
        total_backups=chain.total_backups,
        total_size_bytes=chain.total_size_bytes,
        current=chain.current,
        layers=[
            backup_pb2.ChainLayer(
                backup_id=layer.backup_id,
                backup_type=layer.backup_type,
                path=layer.path,
                size_bytes=layer.stored_bytes,
                virtual_size_bytes=layer.virtual_size_bytes,
                parent_backup_id="" if layer.backup_type == FULL else made_by.get(layer.parent_layer_id, ""),
                created_at=to_timestamp(layer.created_at),
                verified_at=to_timestamp(layer.verified_at),
                doubt=layer.damage or layer.suspicion,
            )
            for layer in chain.layers
        ],
    )


def to_log_entry(entry: LogEntry) -> backup_pb2.LogEntry:
    """Returns a line of a job's log."""
    return backup_pb2.LogEntry(
        entry_id=entry.entry_id,
        created_at=to_timestamp(entry.created_at),
        level=entry.level,
        step=entry.step,
        message=entry.message,
        data_json=entry.data_json,
    )


def to_vm(known: KnownVm, latest: tuple[str, datetime] | None) -> backup_pb2.Vm:
    """Returns a VM with its newest restore point."""
    vm = known.vm
    return backup_pb2.Vm(
        vm_name=vm.name,
        vm_uuid=vm.ref.vm_uuid,
        vcenter_uuid=vm.ref.vcenter_uuid,
        inventory_path=vm.inventory_path,
        agent_id=known.agent_id,
        power_state=vm.power_state,
        change_tracking_enabled=vm.change_tracking_enabled,
        latest_backup_id=latest[0] if latest else "",
        latest_backup_at=to_timestamp(latest[1]) if latest else None,
    )
