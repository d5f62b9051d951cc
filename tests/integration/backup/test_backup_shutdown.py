"""Around a restart: a start while the service stops is refused or kept, and a watched job is watched on."""

from __future__ import annotations

import asyncio
import signal

import pytest
from backup_process import kill, service_process
from backup_service import Client, cleaned, until
from backup_world import World

from sendense.backup.v1 import backup_pb2, job_pb2
from sendense_backup.config import BackupSettings
from sendense_rpc.errors import Kind, RemoteError

pytest_plugins = ("backup_fixtures",)


async def test_a_start_during_shutdown_is_refused_and_the_same_request_is_done_once_afterwards(
    settings: BackupSettings, world: World
) -> None:
    for number in range(6):
        world.add_vm(f"vm{number}")
    world.batch_pause = 0.1
    async with service_process(settings) as (process, client):
        first = await client.start("vm0", request_id="r0")
        await client.copied_something(first.backup_id)
        process.send_signal(signal.SIGTERM)
        starts = [client.start(f"vm{n}", request_id=f"r{n}") for n in range(1, 6)]
        answers = await asyncio.gather(*starts, return_exceptions=True)
        await process.wait()
    # A server that goes away ends the calls that it still has with CANCELLED: they may have been done, or not.
    refused = [each for each in answers if isinstance(each, BaseException)]
    kinds = {each.kind for each in refused if isinstance(each, RemoteError)}
    assert kinds <= {Kind.UNAVAILABLE, Kind.CANCELLED}
    assert all(isinstance(each, RemoteError) for each in refused), refused
    async with service_process(settings) as (_, client):
        await _answers(client)
        again = [await client.start(f"vm{n}", request_id=f"r{n}") for n in range(6)]
        ended = await client.all_ended(again)
        assert {each.status for each in ended} == {"completed"}
        listed = await client.peer.call(client.jobs.ListJobs, job_pb2.ListJobsRequest(kind="backup"))
        assert {each.job_id for each in listed.jobs} == {each.backup_id for each in again}
        await cleaned(world)


async def test_progress_goes_on_where_it_was_when_a_watch_is_joined_again(
    settings: BackupSettings, world: World
) -> None:
    world.add_vm("web", disks=2)
    world.batch_pause = 0.2
    seen: list[backup_pb2.Backup] = []

    async with service_process(settings) as (process, client):
        backup = await client.start("web")
        request = backup_pb2.WatchBackupRequest(backup_id=backup.backup_id)

        async def watch() -> None:
            async for each in client.peer.stream(client.backups.WatchBackup, request, timeout=120):
                seen.append(each)  # others look at it meanwhile

        watching = asyncio.create_task(watch())
        await until(lambda: any(each.progress.done_bytes for each in seen), "the watch shows progress")
        await kill(process, settings)
        with pytest.raises(RemoteError):
            await watching
    before = seen[-1].progress.done_bytes
    async with service_process(settings) as (_, client):
        await _answers(client)
        seen.clear()
        seen += [each async for each in client.peer.stream(client.backups.WatchBackup, request, timeout=120)]
    assert seen[-1].status == "completed"
    assert seen[-1].bytes_transferred >= before
    disks = [disk.progress for each in seen for disk in each.disks if disk.HasField("progress")]
    assert {"capture"} <= {progress.phase for progress in disks}
    assert any(0 < progress.percent < 100 for progress in disks)
    assert any(progress.rate_bytes_per_second > 0 and progress.eta_seconds >= 0 for progress in disks)


async def _answers(client: Client) -> None:
    """Waits until the channel has got over the time without a service: gRPC pauses between its tries to connect."""
    async with asyncio.timeout(120):
        while True:
            try:
                await client.peer.call(client.jobs.ListJobs, job_pb2.ListJobsRequest())
            except RemoteError:
                await asyncio.sleep(0.1)
            else:
                return
