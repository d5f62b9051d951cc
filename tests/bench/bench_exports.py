"""How soon an export is usable, and usable again after the daemon's death, against starting a qemu-nbd process.

Usable means: a client has negotiated the export and read its first sector.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nbd
from figures import Row, run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from integration.exports.nbdd_process import RunningNbdd, nbdd_running
from sendense_exports.config import ExportsSettings
from sendense_exports.exportconf import ExportSpec
from sendense_exports.nbdd_link import NbddLink
from sendense_qemu import img

SAMPLES = 30
OTHERS = 200
DEATHS = 10
BASE = "start a qemu-nbd process"


def rows() -> list[Row]:
    """Measures and returns all figures."""
    folder = Path(tempfile.mkdtemp(prefix="bench-exports-", dir="/tmp"))  # a short path for sockets
    try:
        taken = asyncio.run(_measure(folder, SAMPLES))
    finally:
        shutil.rmtree(folder)
    base = statistics.median(taken[BASE])
    measured = []
    for name, times in taken.items():
        measured.append(Row.of(name, [1000 * each for each in times], unit="ms"))
        if name != BASE:
            measured.append(Row.of(f"{name}, ratio", [each / base for each in times], against=BASE))
    return measured


async def _measure(folder: Path, samples: int) -> dict[str, list[float]]:
    os.environ["SENDENSE_HOME"] = str(folder)
    os.environ["SENDENSE_EXPORTS_RESTART_PAUSE_SECONDS"] = "0"  # the deaths here follow one another
    settings = ExportsSettings()
    images = settings.root / "backups"
    taken: dict[str, list[float]] = {}
    link = NbddLink(settings)
    async with nbdd_running(settings) as nbdd:
        await img.create_qcow2(images / "image.qcow2", 1 << 40)
        for number in range(OTHERS):
            shutil.copy(images / "image.qcow2", images / f"other-{number}.qcow2")
        taken[BASE] = [await asyncio.to_thread(_qemu_nbd, images) for _ in range(samples)]
        taken["add an export"] = await _times(samples, lambda: _add(link, images))
        taken["daemon killed, one export usable again"] = await _deaths(nbdd, images, 1)
        for number in range(1, OTHERS):
            nbdd.conf(f"other-{number}", images / f"other-{number}.qcow2")
        await nbdd.reload()
        taken[f"add an export beside {OTHERS}"] = await _times(samples, lambda: _add(link, images))
        taken[f"daemon killed, all of {OTHERS} exports usable again"] = await _deaths(nbdd, images, OTHERS)
    return taken


async def _times(samples: int, once: Callable[[], Awaitable[float]]) -> list[float]:
    return [await once() for _ in range(samples)]


async def _add(link: NbddLink, images: Path) -> float:
    """Makes an export as the service does, and uses it; then takes it away again, untimed."""
    name = "added"
    spec = ExportSpec(
        name,
        images / "image.qcow2",
        "qcow2",
        read_only=False,
        trim=False,
        size_bytes=None,
        file=link.conf_file(name),
        line=1,
    )
    began = time.monotonic()
    status = await link.write(spec)
    await asyncio.to_thread(_use, f"nbd+unix:///{name}?socket={status.socket_path}")
    took = time.monotonic() - began
    await link.remove(name)
    return took


async def _deaths(nbdd: RunningNbdd, images: Path, exports: int) -> list[float]:
    nbdd.conf("other-0", images / "other-0.qcow2")
    await nbdd.reload()
    times = []
    for _ in range(DEATHS):
        status = nbdd.status()
        began = time.monotonic()
        os.kill(status.daemon_pid, signal.SIGKILL)
        await nbdd.wait(
            lambda s, n=status.daemon_starts: (
                s.daemon_starts > n  # type: ignore[misc]
                and sum(entry.state == "serving" for entry in s.exports.values()) == exports
            )
        )
        await asyncio.to_thread(_use, nbdd.uri("other-0"))
        times.append(time.monotonic() - began)
    return times


def _use(uri: str) -> None:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    handle.pread(512, 0)
    handle.shutdown()


def _qemu_nbd(images: Path) -> float:
    socket = images / "qemu-nbd.sock"
    socket.unlink(missing_ok=True)
    began = time.monotonic()
    command = ["qemu-nbd", "-t", "-x", "disk", "-k", str(socket), "-f", "qcow2", str(images / "image.qcow2")]
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                _use(f"nbd+unix:///disk?socket={socket}")
            except nbd.Error:
                if process.poll() is not None:
                    raise
                time.sleep(0.001)
            else:
                return time.monotonic() - began
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    run_script(__doc__, rows)
