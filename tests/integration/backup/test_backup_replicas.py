"""Two replicas on one PostgreSQL: a dead one's jobs are taken up by the other, a live one's are left alone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from backup_postgres import postgres
from backup_process import service_process
from backup_service import cleaned, running, until
from backup_world import World

from sendense_backup.config import BackupSettings
from sendense_db.migrate import upgrade

pytest_plugins = ("backup_fixtures",)

STEPS = [
    ("snapshot", "executed"),
    ("layer.0", "executed"),
    ("export.0", "recorded"),
    ("capture.0", "executed"),
    ("seal.0", "recorded"),
    ("commit", "executed"),
]


@pytest.fixture
def database_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with postgres() as url:
        upgrade(url)
        monkeypatch.setenv("SENDENSE_DATABASE_URL", url)
        yield url


def replica(settings: BackupSettings, home: Path) -> BackupSettings:
    """Returns settings of a second machine's process: the same services and keys, a socket of its own."""
    (home / "run").mkdir(parents=True)
    (home / "keys").symlink_to(settings.root / "keys")
    for each in settings.run_dir.iterdir():
        (home / "run" / each.name).symlink_to(each)
    return settings.model_copy(update={"home": home})


@pytest.mark.faults
async def test_jobs_of_a_killed_replica_are_completed_by_the_other(
    database_url: str, settings: BackupSettings, world: World
) -> None:
    shared = settings.model_copy(update={"database_url": database_url})
    other = replica(shared, settings.root / "other")
    plan = {f"vm{number}": point for number, point in enumerate(STEPS)}
    for name in plan:
        vm = world.add_vm(name)
        world.seed_point(vm)
        vm.write(0, 5, b"z")
    marks = settings.root / "marks"
    async with service_process(shared, plan) as (process, first):
        started = await asyncio.gather(*(first.start(name, "incremental") for name in plan))
        await until(lambda: len(list(marks.iterdir())) == len(plan), "every job hangs at its step")
        async with running(other) as second:
            await asyncio.sleep(4)
            alive = await asyncio.gather(*(second.get(each.backup_id) for each in started))
            assert {each.status for each in alive} == {"running"}, "a live replica's jobs were taken"
            process.send_signal(signal.SIGKILL)
            await process.wait()
            ended = await asyncio.gather(*(second.ended(each.backup_id) for each in started))
            assert [(plan[each.vm_name], each.status, each.error_message) for each in ended] == [
                (point, "completed", "") for point in plan.values()
            ]
            await cleaned(world)
    for each, vm in zip(ended, world.vms, strict=True):
        assert world.point_contents(each.backup_id) == [bytes(disk.content) for disk in vm.disks]
