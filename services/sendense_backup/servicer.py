"""The edge: turns messages into calls of use cases, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_backup.backups import Backups, StartOrder
from sendense_backup.convert import LARGEST_PAGE, page_size, to_backup, to_chain, to_filter, to_log_entry, to_vm
from sendense_backup.jobs import Jobs
from sendense_backup.model import Job


class BackupServicer(backup_pb2_grpc.BackupServiceServicer):
    """BackupService."""

    def __init__(self, backups: Backups, jobs: Jobs) -> None:
        self._backups = backups
        self._jobs = jobs

    async def StartBackup(self, request: backup_pb2.StartBackupRequest, context: Any) -> backup_pb2.Backup:
        """Queues a backup."""
        del context
        order = StartOrder(
            vm_name=request.vm_name,
            vm_uuid=request.vm_uuid,
            backup_type=request.backup_type,
            repository=request.repository,
            request_id=request.request_id,
            quiesce=request.quiesce,
            exclude_disks=tuple(request.exclude_disks),
        )
        return to_backup(await self._backups.start(order))

    async def ListBackups(self, request: backup_pb2.ListBackupsRequest, context: Any) -> backup_pb2.ListBackupsResponse:
        """Lists backups, newest first."""
        del context
        jobs, following = await self._backups.catalogue.jobs.page(
            to_filter(request), page_size(request.page_size), request.page_token
        )
        return backup_pb2.ListBackupsResponse(backups=[to_backup(job) for job in jobs], next_page_token=following)

    async def GetBackup(self, request: backup_pb2.GetBackupRequest, context: Any) -> backup_pb2.Backup:
        """Returns a backup with its disks and progress."""
        del context
        return to_backup(await self._backups.catalogue.jobs.get(request.backup_id))

    async def DeleteBackup(
        self, request: backup_pb2.DeleteBackupRequest, context: Any
    ) -> backup_pb2.DeleteBackupResponse:
        """Deletes a restore point."""
        del context
        deletion = await self._jobs.delete(
            request.backup_id, cascade=request.cascade, dry_run=request.dry_run, request_id=request.request_id
        )
        operation = deletion.operation
        return backup_pb2.DeleteBackupResponse(
            backup_ids=deletion.backup_ids,
            freed_bytes=deletion.freed_bytes,
            dry_run=request.dry_run,
            job_id=operation.operation_id if operation else "",
            status=operation.status if operation else "",
            merged_into=deletion.merged_into,
        )

    async def GetChain(self, request: backup_pb2.GetChainRequest, context: Any) -> backup_pb2.GetChainResponse:
        """Returns a VM's chains."""
        del context
        return to_chain(*await self._backups.chain(request.vm_name, request.vm_uuid))

    async def CancelBackup(self, request: backup_pb2.CancelBackupRequest, context: Any) -> backup_pb2.Backup:
        """Asks a backup to stop."""
        del context
        known = await self._backups.catalogue.jobs.get(request.backup_id)
        await self._jobs.cancel(known.backup_id)
        return to_backup(await self._backups.catalogue.jobs.get(known.backup_id))

    async def ListLogEntries(
        self, request: backup_pb2.ListLogEntriesRequest, context: Any
    ) -> backup_pb2.ListLogEntriesResponse:
        """Returns a job's log, oldest first."""
        del context
        job = await self._backups.catalogue.jobs.get(request.backup_id)
        entries, following = await self._backups.catalogue.log.page(
            job.backup_id, page_size(request.page_size), request.page_token
        )
        return backup_pb2.ListLogEntriesResponse(
            entries=[to_log_entry(entry) for entry in entries], next_page_token=following
        )

    async def WatchBackup(
        self, request: backup_pb2.WatchBackupRequest, context: Any
    ) -> AsyncIterator[backup_pb2.Backup]:
        """Streams a backup until it has ended."""
        del context
        known = await self._backups.catalogue.jobs.get(request.backup_id)
        async for job in self._jobs.watch(known.backup_id):
            if isinstance(job, Job):
                yield to_backup(job)


class VmServicer(backup_pb2_grpc.VmServiceServicer):
    """VmService."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    async def ListVms(self, request: backup_pb2.ListVmsRequest, context: Any) -> backup_pb2.ListVmsResponse:
        """Lists the VMs of all connected agents."""
        del context
        size = page_size(request.page_size or LARGEST_PAGE)
        vms, following = await self._backups.vms(request.vm_name, size, request.page_token)
        return backup_pb2.ListVmsResponse(
            vms=[to_vm(known, latest) for known, latest in vms], next_page_token=following
        )
