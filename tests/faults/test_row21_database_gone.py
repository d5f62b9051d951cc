"""Row 21: PostgreSQL dies under running jobs and comes back: no duplicate, no loss, and nobody has to help."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from backup_postgres import postgres_server
from backup_process import service_process
from backup_service import cleaned, settings_for, until
from world_serving import world_serving

from sendense_db.migrate import upgrade

VMS = 6


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", ["copying", "committing"])
async def test_jobs_survive_a_database_that_is_killed_under_them(memory_home: Path, moment: str) -> None:
    with postgres_server() as server:
        await asyncio.to_thread(upgrade, server.url)
        settings = settings_for(memory_home, SENDENSE_DATABASE_URL=server.url)
        async with world_serving(settings) as world:
            for number in range(VMS):
                world.add_vm(f"vm{number}")
            # Each copy stands behind its first batch, each commit before its answer, until the server is gone.
            held = {"copying": "Capture.batch", "committing": "CommitPoint.answer"}[moment]
            world.holds[held] = asyncio.Event()
            async with service_process(settings, SENDENSE_BACKUP_RETRY_SECONDS="30") as (process, client):
                started = await asyncio.gather(*(client.start(f"vm{number}") for number in range(VMS)))
                if moment == "copying":
                    await until(lambda: world.most_captures == VMS, "all copy")
                else:
                    await asyncio.wait_for(world.held.wait(), 120)
                await asyncio.to_thread(server.kill)
                world.holds.pop(held).set()
                await asyncio.to_thread(server.start)
                ended = await client.all_ended(started)
                assert process.returncode is None, "the service did not live through it"
                assert [(each.status, each.error_message) for each in ended] == [("completed", "")] * VMS
                await cleaned(world)
                again = await client.run("vm0", "incremental")
                assert again.status == "completed"
    assert sorted(point.backup_id for point in world.points) == sorted(
        [*(each.backup_id for each in started), again.backup_id]
    )
    for each, vm in zip(ended, world.vms, strict=True):
        assert world.point_contents(each.backup_id) == [bytes(disk.content) for disk in vm.disks]
