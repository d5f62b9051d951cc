"""The edge of JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sendense.backup.v1 import job_pb2, job_pb2_grpc
from sendense_backup.convert import page_size, to_log_entry
from sendense_backup.job_convert import to_any_filter, to_any_job
from sendense_backup.jobs import Jobs, id_of


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """JobService."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Any) -> job_pb2.ListJobsResponse:
        """Lists jobs of all kinds, newest first."""
        del context
        found, following = await self._jobs.catalogue.all_jobs.page(
            to_any_filter(request), page_size(request.page_size), request.page_token
        )
        return job_pb2.ListJobsResponse(jobs=[to_any_job(job) for job in found], next_page_token=following)

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:
        """Returns a job."""
        del context
        return to_any_job(await self._jobs.get(request.job_id))

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Any) -> job_pb2.Job:
        """Asks a job to stop."""
        del context
        return to_any_job(await self._jobs.cancel(request.job_id))

    async def RetryJob(self, request: job_pb2.RetryJobRequest, context: Any) -> job_pb2.Job:
        """Starts a job that failed again."""
        del context
        return to_any_job(await self._jobs.retry(request.job_id, request.request_id))

    async def ListJobLogEntries(
        self, request: job_pb2.ListJobLogEntriesRequest, context: Any
    ) -> job_pb2.ListJobLogEntriesResponse:
        """Returns a job's log, oldest first."""
        del context
        identifier = id_of(await self._jobs.get(request.job_id))
        backup = identifier.startswith("backup-")
        log = self._jobs.catalogue.log if backup else self._jobs.catalogue.operation_log
        entries, following = await log.page(identifier, page_size(request.page_size), request.page_token)
        return job_pb2.ListJobLogEntriesResponse(
            entries=[to_log_entry(entry) for entry in entries], next_page_token=following
        )

    async def WatchJob(self, request: job_pb2.WatchJobRequest, context: Any) -> AsyncIterator[job_pb2.Job]:
        """Streams a job until it has ended."""
        del context
        async for job in self._jobs.watch(request.job_id):
            yield to_any_job(job)

    async def VerifyBackup(self, request: job_pb2.VerifyBackupRequest, context: Any) -> job_pb2.Job:
        """Queues the reading back of a restore point."""
        del context
        rate = max(0, request.bytes_per_second)
        return to_any_job(await self._jobs.verify(request.backup_id, rate, request.request_id))

    async def ConsolidateBackups(self, request: job_pb2.ConsolidateBackupsRequest, context: Any) -> job_pb2.Job:
        """Queues the consolidation of a run of restore points."""
        del context
        return to_any_job(
            await self._jobs.consolidate(request.first_backup_id, request.last_backup_id, request.request_id)
        )
