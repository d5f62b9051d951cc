"""The real backup service in a process of its own, to be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from backup_service import Client, until

from sendense_backup.config import BackupSettings
from sendense_rpc.channel import unix_peer

SCRIPT = Path(__file__).with_name("hanging_service.py")


@asynccontextmanager
async def service_process(
    settings: BackupSettings, plan: dict[str, tuple[str, str]] | None = None, **environment: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    """Runs the real `main` in a process of its own; jobs of VMs in `plan` hang at a step and leave a mark there."""
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
            "HANG_AT": json.dumps(plan or {}),
            "HANG_MARKS": str(marks),
            **environment,
        },
    )
    try:
        listens = settings.socket("backup").is_socket
        await until(lambda: process.returncode is not None or listens(), "the service listens")
        peer = unix_peer(settings.socket("backup"), settings.identity_file("backup"))
        try:
            yield process, Client(peer)
        finally:
            await peer.close()
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the service; one that does not end fails the test, and is not left behind."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), 120)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise


async def kill(process: asyncio.subprocess.Process, settings: BackupSettings) -> None:
    """Kills the service as a power cut would, and takes its dead socket away."""
    process.send_signal(signal.SIGKILL)
    await process.wait()
    settings.socket("backup").unlink(missing_ok=True)


@contextlib.contextmanager
def stop(process: asyncio.subprocess.Process) -> Iterator[None]:
    """Stops the service with SIGSTOP; it goes on at the end of the block at the latest."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        cont(process)


def cont(process: asyncio.subprocess.Process) -> None:
    """Lets a stopped service go on."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
