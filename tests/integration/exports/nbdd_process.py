"""A real nbdd in a process of its own, and the clients that its tests use."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sendense_exports.config import ExportsSettings
from sendense_exports.layout import ensure_layout, read_generation
from sendense_exports.status import ExportStatus, Status, StatusUnreadableError, read_status, replace_file
from sendense_qemu import img
from sendense_qemu.process import run

DEADLINE = 60.0


class RunningNbdd:
    """An nbdd under test; its configuration is changed as an administrator would."""

    def __init__(self, settings: ExportsSettings, process: asyncio.subprocess.Process) -> None:
        self.settings = settings
        self.process = process

    def status(self) -> Status:
        return read_status(self.settings.status_file)

    def exports(self) -> dict[str, ExportStatus]:
        return self.status().exports

    def conf(self, name: str, path: Path | str, fmt: str = "qcow2", *, read_only: bool = False, more: str = "") -> Path:
        file = self.settings.conf_dir / f"{name}.conf"
        flag = "true" if read_only else "false"
        replace_file(file, f"[{name}]\nexportname = {path}\nformat = {fmt}\nreadonly = {flag}\n{more}")
        return file

    def uri(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.settings.nbd_socket}"

    async def wait(self, predicate: Callable[[Status], bool], what: str = "") -> Status:
        last: Status | None = None
        async with asyncio.timeout(DEADLINE):
            try:
                while True:
                    try:
                        last = self.status()
                        if predicate(last):
                            return last
                    except StatusUnreadableError:
                        pass
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                print(what, last)  # noqa: T201  # the status explains the time-out
                raise

    async def reload(self) -> Status:
        """What the service does: a higher generation, SIGHUP, wait for it."""
        wanted = read_generation(self.settings.generation_file) + 1
        replace_file(self.settings.generation_file, str(wanted))
        self.process.send_signal(signal.SIGHUP)
        return await self.wait(lambda status: status.generation >= wanted, f"generation {wanted}")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), DEADLINE)


async def start(settings: ExportsSettings, **environment: str) -> RunningNbdd:
    ensure_layout(settings)
    settings.image_roots[0].mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sendense_exports.nbdd",
        env={**os.environ, "SENDENSE_HOME": str(settings.root), **environment},
    )
    nbdd = RunningNbdd(settings, process)
    try:
        await nbdd.wait(lambda status: status.pid == process.pid, "start")
    except TimeoutError:
        await nbdd.stop(signal.SIGKILL)
        raise
    return nbdd


@asynccontextmanager
async def nbdd_running(settings: ExportsSettings, **environment: str) -> AsyncIterator[RunningNbdd]:
    nbdd = await start(settings, **environment)
    try:
        yield nbdd
    finally:
        assert await nbdd.stop() == 0
        assert not settings.nbd_socket.exists()
        assert not settings.qmp_socket.exists()


async def overlay(folder: Path, name: str, size_mib: int = 4) -> Path:
    """A qcow2 overlay on a full of 0x01 bytes."""
    full, incr = folder / f"{name}-full.qcow2", folder / f"{name}-incr.qcow2"
    await img.create_qcow2(full, size_mib << 20)
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 1 0 {size_mib}M", str(full)], img.QUICK)
    await img.create_qcow2(incr, None, backing_name=full.name)
    return incr


async def nbdcopy(source: str | Path, target: str | Path) -> None:
    await run(["nbdcopy", "--flush", str(source), str(target)], img.BULK)


async def listed(nbdd: RunningNbdd) -> set[str]:
    """The names that a client sees."""
    if not nbdd.exports():
        return set()
    finished = await run(["nbdinfo", "--list", "--json", nbdd.uri("")], img.QUICK)
    return {export["export-name"] for export in json.loads(finished.stdout)["exports"]}


@asynccontextmanager
async def nbdkit(socket: Path, *arguments: str) -> AsyncIterator[str]:
    """An nbdkit with a plugin and filters as given; yields its URI."""
    process = await asyncio.create_subprocess_exec("nbdkit", "-f", "--exit-with-parent", "-U", str(socket), *arguments)
    try:
        async with asyncio.timeout(DEADLINE):
            while not socket.exists():  # noqa: ASYNC240  # a stat
                assert process.returncode is None, "nbdkit ended"
                await asyncio.sleep(0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def noise(path: Path, size: int, seed: int = 1) -> Path:
    """A file of random bytes, the same for the same seed."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


@contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    """A loop device over a file; needs root."""
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True)
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
