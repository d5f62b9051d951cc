"""Prints how the copy engine compares with nbdcopy on the same servers; asserts nothing and writes nothing else.

Run it as `.venv/bin/python tests/bench/bench_engine.py [--size-mib 2048] [--runs 5] [--cores 2]`. Data lies in
/dev/shm and its pages are resident before the first measured run, so what is measured is the copying. Each figure is
the median of paired runs: one after the other in each round, all over again in the next one, so that a busy neighbour
hits all alike.
"""

# ruff: noqa: T201 - a benchmark prints

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from sendense_blockio import lane
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import CopyOptions, copy
from sendense_blockio.extents import Extent, areas_digest, bridge
from sendense_blockio.journal import JournalHeader, JournalWriter

MIB = 1 << 20
TUNED = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}


class Bench:
    """Servers over one source and one target, and ways to copy between them."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self.processes: list[subprocess.Popen[bytes]] = []
        self._journals = 0

    def prepare(self) -> None:
        """Fills the source with incompressible bytes and starts nbdkit and both daemons."""
        source = self.directory / "source"
        with source.open("wb") as stream:
            for _ in range(self.size // MIB):
                stream.write(random.randbytes(MIB))
        self._start(["nbdkit", "-f", "-U", str(self.directory / "source.sock"), "file", str(source)], {})
        for name, environment in (("stock", {}), ("tuned", TUNED)):
            image = self.directory / f"{name}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(self.size)], check=True)
            self._start(
                [
                    "qemu-storage-daemon",
                    "--blockdev", f"driver=file,node-name=file,filename={image}",
                    "--blockdev", "driver=qcow2,node-name=disk,file=file",
                    "--nbd-server", f"addr.type=unix,addr.path={self.directory / name}.sock",
                    "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
                ],
                environment,
            )  # fmt: skip
        deadline = time.monotonic() + 10
        for name in ("source", "stock", "tuned"):
            while not (self.directory / f"{name}.sock").exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name} does not listen")
                time.sleep(0.01)

    def _start(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.processes.append(subprocess.Popen(arguments, env={**os.environ, **environment}))

    def end(self) -> None:
        """Ends what was started."""
        for process in self.processes:
            process.terminate()
            process.wait(10)

    def nbdcopy(self, daemon: str, *options: str) -> None:
        """Copies with nbdcopy, flushed at the end."""
        subprocess.run(
            [
                "nbdcopy", "--flush", *options,
                f"nbd+unix:///?socket={self.directory}/source.sock",
                f"nbd+unix:///disk?socket={self.directory}/{daemon}.sock",
            ],
            check=True,
        )  # fmt: skip

    def engine(self, options: CopyOptions, areas: list[Extent]) -> None:
        """Copies with the engine, each batch into a journal."""
        self._journals += 1
        header = JournalHeader("bench", 1, "", areas_digest(areas, self.size), self.size)
        path = self.directory / f"journal-{self._journals}"
        with JournalWriter.create(path, header) as journal:
            copy(
                Endpoint.unix(self.directory / "source.sock"),
                Endpoint.unix(self.directory / "tuned.sock", "disk"),
                areas,
                options,
                lambda batch: journal.append_batch(batch.sequence, batch.entries) and None,
            )


class _NoHash:
    """Stands in for BLAKE3 to see what hashing costs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def digest(self) -> bytes:
        return bytes(32)


def scatter(size: int, share: float, run: int) -> list[Extent]:
    """Returns changed areas of `run` bytes at random places, a share of the disk in all."""
    places = random.Random(5).sample(range(size // run), int(size * share) // run)
    return [Extent(place * run, run) for place in sorted(places)]


def seconds(work: Callable[[], None]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    directory = Path(tempfile.mkdtemp(prefix="bench-engine-", dir="/dev/shm"))
    bench = Bench(directory, arguments.size_mib * MIB)
    try:
        bench.prepare()
        measure(bench, arguments.runs)
    finally:
        bench.end()
        shutil.rmtree(directory)


def measure(bench: Bench, runs: int) -> None:
    """Runs all ways in turns and prints medians, spreads and ratios."""
    whole = [Extent(0, bench.size)]
    changed = scatter(bench.size, 0.05, 64 * 1024)
    bridged = bridge(changed)
    best = CopyOptions()

    def without_hash() -> None:
        with mock.patch.object(lane, "blake3", _NoHash):
            bench.engine(best, whole)

    ways: dict[str, tuple[int, Callable[[], None]]] = {
        "nbdcopy stock, stock daemon": (bench.size, lambda: bench.nbdcopy("stock")),
        "nbdcopy best, tuned daemon": (
            bench.size,
            lambda: bench.nbdcopy("tuned", "-C2", f"--request-size={MIB}", f"--queue-size={4 * MIB}"),
        ),
        "engine 2x4": (bench.size, lambda: bench.engine(best, whole)),
        "engine 2x4, no BLAKE3": (bench.size, without_hash),
        "engine 1x8": (bench.size, lambda: bench.engine(CopyOptions(connections=1, depth=8), whole)),
        "engine 2x8": (bench.size, lambda: bench.engine(CopyOptions(depth=8), whole)),
        "engine 2x2": (bench.size, lambda: bench.engine(CopyOptions(depth=2), whole)),
        "increment 5 %, 64K scatter": (
            sum(area.length for area in changed),
            lambda: bench.engine(best, bridged),
        ),
        "increment of nothing": (0, lambda: bench.engine(best, [])),
    }
    for _, work in ways.values():  # faults every page in
        work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, (_, work) in ways.items():
            times[name].append(seconds(work))
    stock, tuned = "nbdcopy stock, stock daemon", "nbdcopy best, tuned daemon"
    print(f"{bench.size // MIB} MiB, {len(os.sched_getaffinity(0))} cores, medians of {runs} paired runs")
    print(f"{'way':30} {'s':>8} {'±':>7} {'GiB/s':>7} {'/stock':>7} {'/best':>7}")
    for name, (size, _) in ways.items():
        taken = statistics.median(times[name])
        spread = statistics.pstdev(times[name])
        rate = size / taken / (1 << 30)
        over_stock, over_best = (
            statistics.median(
                (size / one) / (bench.size / other) for one, other in zip(times[name], times[base], strict=True)
            )
            for base in (stock, tuned)
        )
        print(f"{name:30} {taken:8.3f} {spread:7.3f} {rate:7.2f} {over_stock:7.2f} {over_best:7.2f}")
    hashing = statistics.median(
        plain / hashed for plain, hashed in zip(times["engine 2x4, no BLAKE3"], times["engine 2x4"], strict=True)
    )
    print(f"BLAKE3 costs {100 * (1 - hashing):.0f} %")


if __name__ == "__main__":
    main()
