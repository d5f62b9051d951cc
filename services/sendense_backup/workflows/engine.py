"""DBOS, as this service uses it: launched inside the gRPC event loop, one executor a process, its own database.

Who this process is to DBOS, and what becomes of a dead one's jobs, is in `executor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

import structlog
from dbos import DBOS, DBOSClient, SetWorkflowID
from dbos._serialization import DBOSPortableJSONSerializer

from sendense_backup.config import BackupSettings
from sendense_backup.workflows.durable import APPLICATION_VERSION
from sendense_backup.workflows.executor import executor_for
from sendense_backup.workflows.registry import WORKFLOWS
from sendense_backup.workflows.runtime import Runtime, install, stop_executions

log = structlog.get_logger()

QUEUE = "backup"
POLLING_SECONDS = 0.1
"""The default of one second would be felt at each start."""

STOPPING_SECONDS = 0.2
"""DBOS's listener, which nothing here uses, sleeps this long between two looks; stopping waits for it."""

SPARE_PLACES = 4
"""Places of a process's queue beyond the limit of jobs, which the line keeps: for sweeps and jobs that only end."""

APPLICATION = "sendense-backup"


class Engine:
    """Runs the workflows of this process; an async context manager.

    Entering raises `executor.AlreadyRunning` where another process works on this state directory.

    Args:
        runtime: What they work with.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._executor = executor_for(runtime.settings)
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._executor.acquire()
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _launch(self) -> None:
        """Launches DBOS, which recovers what an earlier process of this executor id left pending."""
        settings = self._runtime.settings
        await asyncio.to_thread(_register_queue, settings)
        install(self._runtime)
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": settings.workflow_url,
                "serializer": DBOSPortableJSONSerializer(),
                "application_version": APPLICATION_VERSION,
                "executor_id": self._executor.executor_id,
                "log_level": "WARNING",
                "notification_listener_polling_interval_sec": STOPPING_SECONDS,
            }
        )
        # In this loop's thread, so that DBOS runs the workflows in this loop, beside gRPC and the catalogue.
        DBOS.launch()
        self._watch = asyncio.create_task(self._executor.watch(self._pending, self._take_over))

    async def _pending(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in await DBOS.list_workflows_async(
            status="PENDING", app_version=APPLICATION_VERSION, load_input=False, load_output=False
        ):
            found.setdefault(each.executor_id or "", []).append(each.workflow_id)
        return found

    async def _take_over(self, workflow_ids: list[str]) -> None:
        await DBOS.resume_workflows_async(workflow_ids, queue_name=QUEUE)

    async def enqueue(self, job_id: str, kind: str) -> None:
        """Queues a job's workflow; again is no error."""
        with SetWorkflowID(job_id):
            await DBOS.enqueue_workflow_async(QUEUE, WORKFLOWS[kind].run, job_id)

    async def release(self, backup_id: str, workflow_id: str) -> None:
        """Starts a release; again with the same id is no error."""
        with SetWorkflowID(workflow_id):
            await DBOS.start_workflow_async(WORKFLOWS["release"].run, backup_id)

    async def states(self, workflow_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Returns of each of these workflows that exists its status and the version that began it."""
        if not workflow_ids:
            return {}
        found = await DBOS.list_workflows_async(workflow_ids=list(workflow_ids), load_input=False, load_output=False)
        return {each.workflow_id: (each.status, each.app_version or "") for each in found}

    async def status(self, workflow_id: str) -> str:
        """Returns a workflow's status; empty when there is none."""
        return (await self.states([workflow_id])).get(workflow_id, ("", ""))[0]

    async def stop(self) -> None:
        """Stops without undoing anything: what is pending goes on at the next start."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await stop_executions()
        await asyncio.to_thread(DBOS.destroy)
        install(None)
        await self._executor.release()


def _register_queue(settings: BackupSettings) -> None:
    """Makes DBOS's tables and the queue before the launch: a queue made after it is noticed a second later only."""
    DBOS.migrate(settings.workflow_url)
    client = DBOSClient(
        system_database_url=settings.workflow_url,
        serializer=DBOSPortableJSONSerializer(),
        application_name=APPLICATION,
    )
    try:
        client.register_queue(
            QUEUE, worker_concurrency=settings.jobs_at_once + SPARE_PLACES, polling_interval_sec=POLLING_SECONDS
        )
    finally:
        client.destroy()
