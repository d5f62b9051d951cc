"""Row 1 with several replicas: limits hold over all of them, a dead one is replaced, a stopped one is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from backup_postgres import Server, postgres_server
from backup_process import cont, kill, service_process, stop
from backup_service import cleaned, settings_for, until
from backup_world import World
from replicas import replica
from world_serving import world_serving

from sendense_backup.config import BackupSettings
from sendense_db.migrate import upgrade

VMS = 20
LIMIT = 5

MUTATIONS = (
    "EnableChangeTracking",
    "CreateSnapshot",
    "CreateLayer",
    "CreateFileExport",
    "AppendJournal",
    "DeleteExport",
    "SealLayer",
    "CommitPoint",
    "RemoveSnapshot",
    "DiscardLayer",
)
"""What a backup changes at other services: at each, a replica is stopped while its call is on the way."""


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_twenty_vms_over_two_replicas_five_at_once_and_one_replica_dies(memory_home: Path) -> None:
    with postgres_server() as server:
        await asyncio.to_thread(upgrade, server.url)
        settings = settings_for(memory_home, SENDENSE_DATABASE_URL=server.url)
        limit = {"SENDENSE_BACKUP_JOBS_AT_ONCE": str(LIMIT)}
        async with world_serving(settings) as world:
            for number in range(VMS):
                world.add_vm(f"vm{number}")
            world.batch_pause = 0.02
            other = replica(settings, settings.root / "other")
            async with (
                service_process(settings, **limit) as (victim, first),
                service_process(other, **limit) as (_, second),
            ):
                both = (first, second)
                started = await asyncio.gather(*(both[number % 2].start(f"vm{number}") for number in range(VMS)))
                await until(lambda: len(world.points) >= VMS // 2, "half of the VMs are backed up")
                await kill(victim, settings)
                ended = await second.all_ended(started)
                await cleaned(world)
    assert Counter(each.status for each in ended) == {"completed": VMS}
    assert Counter(point.vm_name for point in world.points) == {f"vm{number}": 1 for number in range(VMS)}
    assert world.most_captures <= LIMIT
    for each, vm in zip(ended, world.vms, strict=True):
        assert world.point_contents(each.backup_id) == [bytes(disk.content) for disk in vm.disks]


@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_a_replica_that_was_only_stopped_is_refused_by_every_service(memory_home: Path) -> None:
    with postgres_server() as server:
        await asyncio.to_thread(upgrade, server.url)
        settings = settings_for(memory_home, SENDENSE_DATABASE_URL=server.url)
        async with world_serving(settings) as world:
            await _stop_and_continue(settings, world, server)


async def _stop_and_continue(settings: BackupSettings, world: World, server: Server) -> None:
    release = asyncio.Event()
    for call in MUTATIONS:
        vm = world.add_vm(call)
        if call != "EnableChangeTracking":
            world.seed_point(vm)
        vm.write(0, 5, b"z")
        if call == "DiscardLayer":
            vm.plan_faults.append("AREAS_QUERY_FAILED")
        world.hold_first[call, call] = release
    other = replica(settings, settings.root / "other")
    async with service_process(settings) as (process, first):
        started = [
            await first.start(call, "full" if call == "EnableChangeTracking" else "incremental") for call in MUTATIONS
        ]
        await until(lambda: not world.hold_first, "each job's call is on its way")
        with stop(process):
            await asyncio.to_thread(_cut_off, server)
            async with service_process(other) as (_, second):
                ended = await second.all_ended(started)
                assert {each.status for each in ended} == {"completed"}
                cont(process)
                release.set()
                jobs = {each.backup_id for each in started}
                await until(lambda: {job for _, job in world.refused} == jobs, "each late call is refused")
                await cleaned(world)
    points = Counter(point.backup_id for point in world.points)
    assert [points[each.backup_id] for each in started] == [1] * len(MUTATIONS)
    assert {service for service, _ in world.refused} == {"agent", "exports", "repository"}
    for each in ended:
        vm = next(vm for vm in world.vms if vm.name == each.vm_name)
        assert world.point_contents(each.backup_id) == [bytes(disk.content) for disk in vm.disks]


def _cut_off(server: Server) -> None:
    """Ends the connections that hold the replicas' locks, as a broken network would."""
    with psycopg.connect(server.plain_url, autocommit=True, connect_timeout=30) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'backup-%'"
        )
