"""The backup service under test: in this process, with a catalogue of its own, and a client of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from backup_world import World

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc, job_pb2, job_pb2_grpc, policy_pb2_grpc
from sendense_backup.config import BackupSettings
from sendense_backup.main import build
from sendense_backup.store import metadata
from sendense_backup.workflows.runtime import Observer
from sendense_db.engine import Database
from sendense_rpc.channel import Peer, unix_peer
from support import serving

PATIENCE = float(os.environ.get("SENDENSE_TEST_PATIENCE", "240"))


def settings_for(home: Path, **values: Any) -> BackupSettings:
    chosen = {
        "retry_seconds": 0.6,
        "release_seconds": 1.0,
        "sweep_seconds": 0.3,
        "stall_seconds": 5.0,
        "resume_pause_seconds": 0.05,
        **values,
    }
    return BackupSettings(SENDENSE_HOME=home, **chosen)  # type: ignore[call-arg]


async def make_catalogue(settings: BackupSettings) -> None:
    database = Database(settings.catalogue_url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()


class Client:
    """Calls the service as an operator's gateway would, with a workload's identity."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.backups = backup_pb2_grpc.BackupServiceStub(peer.channel)
        self.vms = backup_pb2_grpc.VmServiceStub(peer.channel)
        self.jobs = job_pb2_grpc.JobServiceStub(peer.channel)
        self.policies = policy_pb2_grpc.PolicyServiceStub(peer.channel)

    async def start(self, vm_name: str, backup_type: str = "full", **more: Any) -> backup_pb2.Backup:
        request = backup_pb2.StartBackupRequest(vm_name=vm_name, backup_type=backup_type, **more)
        return await self.peer.call(self.backups.StartBackup, request)

    async def get(self, backup_id: str) -> backup_pb2.Backup:
        return await self.peer.call(self.backups.GetBackup, backup_pb2.GetBackupRequest(backup_id=backup_id))

    async def ended(self, backup_id: str) -> backup_pb2.Backup:
        async with asyncio.timeout(PATIENCE):
            while True:
                backup = await self.get(backup_id)
                if backup.status in ("completed", "failed", "cancelled"):
                    return backup
                await asyncio.sleep(0.15)

    async def all_ended(self, started: Iterable[backup_pb2.Backup]) -> list[backup_pb2.Backup]:
        """Waits for one after the other: as many clients that ask would take the time of the service that works."""
        return [await self.ended(each.backup_id) for each in started]

    async def job(self, job_id: str) -> job_pb2.Job:
        return await self.peer.call(self.jobs.GetJob, job_pb2.GetJobRequest(job_id=job_id))

    async def ended_job(self, job_id: str) -> job_pb2.Job:
        async with asyncio.timeout(PATIENCE):
            while True:
                job = await self.job(job_id)
                if job.status in ("completed", "failed", "cancelled"):
                    return job
                await asyncio.sleep(0.1)

    async def copied_something(self, backup_id: str) -> None:
        """Waits until the backup shows that it has copied bytes."""
        async with asyncio.timeout(PATIENCE):
            while not (await self.get(backup_id)).bytes_transferred:  # noqa: ASYNC110  # another process changes it
                await asyncio.sleep(0.02)

    async def run(self, vm_name: str, backup_type: str = "full", **more: Any) -> backup_pb2.Backup:
        return await self.ended((await self.start(vm_name, backup_type, **more)).backup_id)

    async def log(self, backup_id: str) -> list[backup_pb2.LogEntry]:
        request = backup_pb2.ListLogEntriesRequest(backup_id=backup_id, page_size=1000)
        return list((await self.peer.call(self.backups.ListLogEntries, request)).entries)


@asynccontextmanager
async def running(settings: BackupSettings, observer: Observer | None = None) -> AsyncIterator[Client]:
    """Runs the service for the time of the block; leaving it stops jobs as they are."""
    async with build(settings, observer) as service, serving(service, settings):
        peer = unix_peer(settings.socket("backup"), settings.identity_file("backup"))
        try:
            yield Client(peer)
        finally:
            await peer.close()


async def until(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Waits until something has become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it never came true that {what}"
        await asyncio.sleep(0.02)


async def cleaned(world: World) -> None:
    """Waits until nothing is left behind."""
    deadline = time.monotonic() + 60
    while not world.clean:
        assert time.monotonic() < deadline, f"left behind: {world.left()}"
        await asyncio.sleep(0.05)
