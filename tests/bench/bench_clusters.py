"""Clusters of 64 KiB, 256 KiB and 1 MiB: long writes, scattered changes and what they store, reads through six layers.

The ADR about the cluster size of layers was written with this. Images lie on a disk; qemu's own tools write and read
them past the page cache.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from figures import MIB, Row, ratios, run_script

SIZE = 512 * MIB
LONG = 128 * MIB
CHANGES = 512
LAYERS = 6
CLUSTERS = (64 << 10, 256 << 10, 1 << 20)
RUNS = 3


def rows() -> list[Row]:
    """Measures and returns all figures."""
    folder = Path(tempfile.mkdtemp(prefix="bench-clusters-", dir="/var/tmp"))
    try:
        return _measure(folder)
    finally:
        shutil.rmtree(folder)


def _measure(folder: Path) -> list[Row]:
    seconds: dict[str, dict[int, list[float]]] = {
        name: {cluster: [] for cluster in CLUSTERS} for name in ("long writes", "scattered changes of 64 KiB", "reads")
    }
    stored: dict[int, list[float]] = {cluster: [] for cluster in CLUSTERS}
    for number in range(RUNS):
        for cluster in CLUSTERS:
            taken, held = _one(folder, cluster, number)
            for name, each in taken.items():
                seconds[name][cluster].append(each)
            stored[cluster].append(held / (CHANGES * (64 << 10)))
    base = CLUSTERS[0]
    measured = [Row.of(f"{base >> 10}K: stored for each byte changed, scattered", stored[base])]
    for cluster in CLUSTERS[1:]:
        against = f"clusters of {base >> 10} KiB"
        for name, each in seconds.items():
            samples = ratios(each[cluster], each[base])
            measured.append(Row.of(f"{cluster >> 10}K: {_label(name)}, time", samples, against=against))
        measured.append(Row.of(f"{cluster >> 10}K: stored for each byte changed, scattered", stored[cluster]))
    return measured


def _label(name: str) -> str:
    return f"reads through {LAYERS} layers" if name == "reads" else name


def _one(folder: Path, cluster: int, number: int) -> tuple[dict[str, float], int]:
    """Makes a chain of one full and five increments; returns times, and what a scattered increment takes."""
    chain = [folder / f"layer-{depth}.qcow2" for depth in range(LAYERS)]
    _create(chain[0], cluster, None)
    taken = {
        "long writes": _timed(lambda: _bench(chain[0], "-w", "-c", str(LONG // MIB), "-s", str(MIB), "-S", str(MIB)))
    }
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 1 {LONG} {SIZE - LONG}", str(chain[0])], check=True)
    scattered = 0.0
    order = random.Random(number)
    for depth in range(1, LAYERS):
        _create(chain[depth], cluster, chain[depth - 1])
        slots = order.sample(range(SIZE // (256 << 10)), CHANGES)
        writes = [part for slot in slots for part in ("-c", f"aio_write -q -P {depth} {slot * (256 << 10)} 65536")]
        command = ["qemu-io", "-f", "qcow2", "-t", "none", *writes, "-c", "aio_flush", "-c", "flush", str(chain[depth])]
        scattered += _timed(lambda command=command: subprocess.run(command, check=True))  # type: ignore[misc]
    taken["scattered changes of 64 KiB"] = scattered
    taken["reads"] = _timed(lambda: _bench(chain[-1], "-c", str(SIZE // MIB), "-s", str(MIB), "-S", str(MIB)))
    held = chain[-1].stat().st_blocks * 512
    for path in chain:
        path.unlink()
    return taken, held


def _create(path: Path, cluster: int, below: Path | None) -> None:
    backing = ["-F", "qcow2", "-b", below.name] if below is not None else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *backing, "-o", f"cluster_size={cluster}", str(path), str(SIZE)],
        check=True,
    )


def _bench(path: Path, *options: str) -> None:
    command = ["qemu-img", "bench", "-q", "-f", "qcow2", "-t", "none", "-d", "8", *options, str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    run_script(__doc__, rows)
