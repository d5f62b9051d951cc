"""DBOS, as this service uses it: launched inside the gRPC event loop, one executor a process, its own database.

With SQLite there is exactly one backup process, held to that by a lock on a file, with a fixed executor id: what an
earlier process left pending is recovered when this one starts. With PostgreSQL see `executor`.
"""

from __future__ import annotations

import asyncio
import fcntl
from contextlib import suppress
from typing import IO, Self

import structlog
from dbos import DBOS, SetWorkflowID
from dbos._serialization import DBOSPortableJSONSerializer

from sendense_backup.config import BackupSettings
from sendense_backup.workflows.backup import backup
from sendense_backup.workflows.durable import APPLICATION_VERSION
from sendense_backup.workflows.release import release
from sendense_backup.workflows.runtime import Runtime, install, stop_executions
from sendense_rpc.errors import Kind, SendenseError

log = structlog.get_logger()

QUEUE = "backup"
POLLING_SECONDS = 0.1
"""The default of one second would be felt at each start."""

ENDED = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})
"""Statuses of workflows that do nothing any more."""


class AlreadyRunning(SendenseError):
    """Another backup process works on this state directory."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"another backup service holds {path}",
            kind=Kind.FAILED_PRECONDITION,
            reason="ALREADY_RUNNING",
            help="Stop it first; several replicas need PostgreSQL (SENDENSE_DATABASE_URL).",
        )


class Engine:
    """Runs the workflows of this process; an async context manager.

    Args:
        runtime: What they work with.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock: IO[str] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Launches DBOS and recovers what was left pending.

        Raises:
            AlreadyRunning: Another process works on this state directory.
        """
        settings = self._runtime.settings
        self._lock = _take_lock(settings)
        install(self._runtime)
        DBOS(
            config={
                "name": "sendense-backup",
                "system_database_url": settings.workflow_url,
                "serializer": DBOSPortableJSONSerializer(),
                "application_version": APPLICATION_VERSION,
                "executor_id": "embedded",
                "log_level": "WARNING",
            }
        )
        # In this loop's thread, so that DBOS runs the workflows in this loop, beside gRPC and the catalogue.
        DBOS.launch()
        await DBOS.register_queue_async(
            QUEUE,
            worker_concurrency=settings.jobs_at_once,
            polling_interval_sec=POLLING_SECONDS,
            on_conflict="always_update",
        )

    async def enqueue(self, backup_id: str) -> None:
        """Queues a job's workflow; again is no error."""
        with SetWorkflowID(backup_id):
            await DBOS.enqueue_workflow_async(QUEUE, backup, backup_id)

    async def release(self, backup_id: str, workflow_id: str) -> None:
        """Starts a release; again with the same id is no error."""
        with SetWorkflowID(workflow_id):
            await DBOS.start_workflow_async(release, backup_id)

    async def state(self, workflow_id: str) -> tuple[str, str]:
        """Returns a workflow's status and the version that began it; both empty when there is none."""
        status = await DBOS.get_workflow_status_async(workflow_id)
        return (status.status, status.app_version or "") if status else ("", "")

    async def stop(self) -> None:
        """Stops without undoing anything: what is pending goes on at the next start."""
        if self._lock is None:
            return  # another engine's workflows, if any, are not ours to stop
        await stop_executions()
        await asyncio.to_thread(DBOS.destroy)
        install(None)
        self._lock.close()
        self._lock = None


def _take_lock(settings: BackupSettings) -> IO[str]:
    path = settings.executor_lock
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with suppress(OSError):
            lock.close()
        raise AlreadyRunning(str(path)) from error
    return lock
