"""Row 5: of many starts for one VM, over two replicas, one wins and the others name it, whatever kind of job it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from backup_postgres import postgres_server
from backup_process import service_process
from backup_service import cleaned, settings_for
from replicas import replica
from world_serving import world_serving

from sendense.backup.v1 import backup_pb2, job_pb2
from sendense_db.migrate import upgrade
from sendense_rpc.errors import Kind, RemoteError


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_one_start_wins_over_two_replicas_and_a_foreign_snapshot_stays(memory_home: Path) -> None:
    with postgres_server() as server:
        await asyncio.to_thread(upgrade, server.url)
        settings = settings_for(memory_home, SENDENSE_DATABASE_URL=server.url)
        async with world_serving(settings) as world:
            vm = world.add_vm("web")
            vm.tracking = True
            vm.foreign_snapshots = 1
            done_before = world.seed_point(vm)
            other = replica(settings, settings.root / "other")
            async with service_process(settings) as (_, first), service_process(other) as (_, second):
                world.holds["Capture"] = asyncio.Event()
                starts = [(first, second)[number % 2].start("web") for number in range(12)]
                answers = await asyncio.gather(*starts, return_exceptions=True)
                won = [each for each in answers if isinstance(each, backup_pb2.Backup)]
                lost = [each for each in answers if isinstance(each, RemoteError)]
                assert (len(won), len(lost)) == (1, 11)
                assert {(each.kind, each.reason) for each in lost} == {(Kind.ABORTED, "BACKUP_RUNNING")}
                assert {each.metadata["backup_id"] for each in lost} == {won[0].backup_id}
                world.holds.pop("Capture").set()
                assert (await second.ended(won[0].backup_id)).status == "completed"
                world.holds["WatchVerification.page"] = asyncio.Event()
                request = job_pb2.VerifyBackupRequest(backup_id=won[0].backup_id)
                verified = await first.peer.call(first.jobs.VerifyBackup, request)
                with pytest.raises(RemoteError) as refused:
                    await second.start("web")
                assert refused.value.metadata["backup_id"] == verified.job_id
                world.holds.pop("WatchVerification.page").set()
                assert (await first.ended_job(verified.job_id)).status == "completed"
                await cleaned(world)
    assert vm.foreign_snapshots == 1
    assert [point.backup_id for point in world.points] == [done_before.backup_id, won[0].backup_id]
