"""kill -9 of the service at every step of the workflow: started again, it completes each job, byte-identical."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from backup_service import Client, cleaned, until
from backup_world import World
from test_backup_faults import points

from sendense_backup.config import BackupSettings
from sendense_rpc.channel import unix_peer

pytest_plugins = ("backup_fixtures",)

SCRIPT = Path(__file__).with_name("hanging_service.py")


@asynccontextmanager
async def service_process(
    settings: BackupSettings, plan: dict[str, tuple[str, str]]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    """Runs the real `main` in a process of its own; jobs named in `plan` hang at a step and leave a mark there."""
    marks = settings.root / "marks"
    marks.mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        env={
            **os.environ,
            "SENDENSE_HOME": str(settings.root),
            "SENDENSE_DATABASE_URL": settings.database_url,
            "SENDENSE_BACKUP_JOBS_AT_ONCE": "60",
            "SENDENSE_BACKUP_RETRY_SECONDS": "5",
            "SENDENSE_BACKUP_SWEEP_SECONDS": "0.3",
            "HANG_AT": json.dumps(plan),
            "HANG_MARKS": str(marks),
        },
    )
    await until(lambda: process.returncode is not None or settings.socket("backup").is_socket(), "the service listens")
    peer = unix_peer(settings.socket("backup"), settings.identity_file("backup"))
    try:
        yield process, Client(peer)
    finally:
        await peer.close()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)


@pytest.mark.faults
@pytest.mark.timeout(400)  # a job for each step, all at once
async def test_sigkill_at_each_step_and_every_job_completes_identically(settings: BackupSettings, world: World) -> None:
    moments = [(step, "recorded") for step, _ in points()[::2]]
    # Before the record: the step is done twice. Those that make something are the ones that could go wrong.
    moments += [
        (f"{name}", "executed") for name in ("snapshot", "layer.0", "plan.0", "export.0", "capture.0", "commit")
    ]
    plan = {f"vm{number}": point for number, point in enumerate(moments)}
    for name in plan:
        vm = world.add_vm(name)
        world.seed_point(vm)
        vm.write(0, 5, b"z")
        vm.plan_faults.append("AREAS_QUERY_FAILED")
    marks = settings.root / "marks"
    async with service_process(settings, plan) as (process, client):
        started = await asyncio.gather(*(client.start(name, "incremental") for name in plan))
        await until(lambda: len(list(marks.iterdir())) == len(plan), "every job hangs at its step")
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    settings.socket("backup").unlink()
    async with service_process(settings, {}) as (_, client):
        ended = await asyncio.gather(*(client.ended(each.backup_id) for each in started))
        wrong = [
            f"{plan[each.vm_name]}: {each.status} {each.error_reason} {each.error_message}"
            for each in ended
            if each.status != "completed"
        ]
        assert wrong == []
        await cleaned(world)
    for each, vm in zip(ended, world.vms, strict=True):
        assert world.point_contents(each.backup_id) == [bytes(disk.content) for disk in vm.disks], plan[vm.name]
    assert len(world.points) == 2 * len(plan)
