"""What people do with jobs of any kind: watch, cancel, try again; verify, consolidate and delete restore points."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sendense_backup.errors import BackupMustEnd, JobNotFailed, NoRestorePoint, NotOneVm, OperationFailed, PointHeld
from sendense_backup.model import CANCELLED, COMPLETED, CONSOLIDATE, DELETE, FAILED, VERIFY, Job, Operation
from sendense_backup.store.admission import NewJob
from sendense_backup.store.all_jobs import AnyJob
from sendense_backup.store.operations import NewOperation
from sendense_backup.workflows.runtime import Runtime

WATCH_SECONDS = 0.5
"""A watched job is looked at this often, so changes are told at most twice a second."""
HEARTBEAT_SECONDS = 15.0
"""A watched job that does not change is told again after this long."""
DELETE_WAIT_SECONDS = 20.0
"""A deletion's answer waits this long for its job: most of them have ended by then."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was, or would be, deleted. `operation` is None when there was no restore point to delete."""

    backup_ids: Sequence[str]
    merged_into: Sequence[str]
    freed_bytes: int
    operation: Operation | None = None


class Jobs:
    """The use cases.

    Args:
        runtime: The parts.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.catalogue = runtime.catalogue
        self._runtime = runtime

    async def get(self, wanted: str) -> AnyJob:
        """Returns a job by its id or a unique prefix of it."""
        identifier = await self.catalogue.all_jobs.resolve(wanted)
        return await self._read(identifier)

    async def _read(self, identifier: str) -> AnyJob:
        if identifier.startswith("backup-"):
            return await self.catalogue.running.read(identifier)
        return await self.catalogue.operations.read(identifier)

    async def watch(self, wanted: str) -> AsyncIterator[AnyJob]:
        """Yields the job whenever it changed, at most twice a second, and every 15 seconds; the last one has ended."""
        job = await self.get(wanted)
        identifier = id_of(job)
        told_at = time.monotonic()
        yield job
        while not job.final:
            await asyncio.sleep(WATCH_SECONDS)
            now = await self._read(identifier)
            if now != job or time.monotonic() - told_at >= HEARTBEAT_SECONDS:
                job, told_at = now, time.monotonic()
                yield job

    async def cancel(self, wanted: str) -> AnyJob:
        """Asks a job to stop. No error when it has ended."""
        identifier = await self.catalogue.all_jobs.resolve(wanted)
        if identifier.startswith("backup-"):
            if await self.catalogue.jobs.request_cancel(identifier):
                await self.catalogue.log.write(identifier, "info", "cancel", "somebody asked to cancel the backup")
        elif await self.catalogue.operations.request_cancel(identifier):
            await self.catalogue.operation_log.write(identifier, "info", "cancel", "somebody asked to cancel it")
        self._runtime.place_free.set()
        return await self._read(identifier)

    async def retry(self, wanted: str, request_id: str) -> AnyJob:
        """Starts a job that failed or was cancelled again, as a new one.

        Raises:
            JobNotFailed: It runs, or has completed.
            BackupRunning: The VM has a job that has not ended.
        """
        job = await self.get(wanted)
        if job.status not in (FAILED, CANCELLED):
            raise JobNotFailed(id_of(job), job.status)
        again: AnyJob
        if isinstance(job, Job):
            again, _ = await self.catalogue.admission.admit(await self._again(job, request_id))
        else:
            again, _ = await self.catalogue.operations.admit(
                NewOperation(
                    kind=job.kind,
                    scope=job.vm_name or "all",
                    vm_context_id=job.vm_context_id,
                    vm_name=job.vm_name,
                    backup_id=job.backup_id,
                    repository_id=job.repository_id,
                    policy_id=job.policy_id,
                    arguments=job.arguments,
                    request_id=request_id,
                    priority=job.priority,
                    retry_of=job.operation_id,
                )
            )
        self._runtime.place_free.set()
        return again

    async def _again(self, job: Job, request_id: str) -> NewJob:
        return NewJob(
            vm_name=job.vm_name,
            ref=job.ref,
            agent_id=job.agent_id,
            requested_type=job.requested_type,
            repository=await self._runtime.repository.repository(job.repository_id),
            quiesce=job.quiesce,
            request_id=request_id,
            priority=job.priority,
            datastores=job.datastores,
            retry_of=job.backup_id,
            exclude_disks=job.exclude_disks,
        )

    async def verify(self, backup_id: str, bytes_per_second: int, request_id: str) -> Operation:
        """Queues the reading back of a restore point.

        Raises:
            NoRestorePoint: The backup made none.
            BackupRunning: The VM has a job that has not ended.
        """
        job = await self._with_point(backup_id)
        arguments: dict[str, object] = {"bytes_per_second": bytes_per_second}
        return await self._queue(VERIFY, job, arguments, request_id, backup_id=job.backup_id)

    async def consolidate(self, first: str, last: str, request_id: str) -> Operation:
        """Queues the consolidation of a run of restore points into the last of them.

        Raises:
            NoRestorePoint: One of the backups made none.
            NotOneVm: They are of several VMs or repositories, or in the wrong order.
            BackupRunning: The VM has a job that has not ended.
        """
        oldest, newest = await self._with_point(first), await self._with_point(last)
        if (oldest.vm_context_id, oldest.repository_id) != (newest.vm_context_id, newest.repository_id):
            raise NotOneVm(oldest.backup_id, newest.backup_id)
        if oldest.backup_id == newest.backup_id:
            raise NotOneVm(oldest.backup_id, newest.backup_id)
        arguments: dict[str, object] = {"first_backup_id": oldest.backup_id, "last_backup_id": newest.backup_id}
        return await self._queue(CONSOLIDATE, newest, arguments, request_id, backup_id=newest.backup_id)

    async def delete(self, backup_id: str, *, cascade: bool, dry_run: bool, request_id: str) -> Deletion:
        """Deletes a restore point as a job, or hides the record of a backup that made none.

        Raises:
            BackupMustEnd: It is still running.
            PointHeld: Somebody reads a point that is concerned.
            BackupRunning: The VM has another job that has not ended.
            OperationFailed: The deletion failed; nothing was changed.
        """
        known = None if dry_run else await self.catalogue.operations.known_request(request_id)
        if known is None:
            job = await self.catalogue.jobs.get(backup_id)
            if not job.final:
                raise BackupMustEnd(job.backup_id)
            if job.status != COMPLETED or await self._runtime.repository.point(job.backup_id) is None:
                if not dry_run:
                    await self.catalogue.jobs.mark_deleted([job.backup_id])
                return Deletion([job.backup_id], [], 0)
            plan = await self._runtime.maintenance.plan_deletion([job.backup_id], cascade=cascade)
            if dry_run:
                return Deletion(plan.backup_ids, plan.merged_into, plan.freed_bytes)
            if plan.holders:
                raise PointHeld(job.backup_id, plan.holders)
            arguments = {"backup_ids": [job.backup_id], "cascade": cascade}
            known = await self._queue(DELETE, job, arguments, request_id, backup_id=job.backup_id)
        return await self._ended_soon(known)

    async def _ended_soon(self, operation: Operation) -> Deletion:
        deadline = time.monotonic() + DELETE_WAIT_SECONDS
        while not operation.final and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            operation = await self.catalogue.operations.read(operation.operation_id)
        if operation.status == FAILED:
            raise OperationFailed(operation)
        result = operation.result
        return Deletion(
            backup_ids=result.get("backup_ids") or result.get("settled") or operation.arguments["backup_ids"],
            merged_into=result.get("merged_into", []),
            freed_bytes=result.get("freed_bytes", 0),
            operation=operation,
        )

    async def _queue(
        self, kind: str, job: Job, arguments: dict[str, object], request_id: str, *, backup_id: str
    ) -> Operation:
        operation, new = await self.catalogue.operations.admit(
            NewOperation(
                kind=kind,
                scope=job.vm_name,
                vm_context_id=job.vm_context_id,
                vm_name=job.vm_name,
                backup_id=backup_id,
                repository_id=job.repository_id,
                arguments=arguments,
                request_id=request_id,
            )
        )
        if new:
            self._runtime.place_free.set()
        return operation

    async def _with_point(self, backup_id: str) -> Job:
        job = await self.catalogue.jobs.get(backup_id)
        if job.status != COMPLETED:
            raise NoRestorePoint(job.backup_id, job.status)
        return job


def id_of(job: AnyJob) -> str:
    """Returns a job's id."""
    return job.backup_id if isinstance(job, Job) else job.operation_id
