"""Reading a restore point through 6 and 31 layers against one layer with the same bytes.

Each chain lies in memory and is served as nbdd would serve it; nbdcopy reads all of it to nowhere.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from copy_servers import CopyServers
from figures import MIB, TUNED, Goal, Row, in_turns, ratios, run_script

SIZE = 256 * MIB
CHANGES = 64
"""Pieces of 64 KiB that each increment wrote."""
PIECE = 64 << 10
RUNS = 5
DEPTHS = {6: Goal(0.8, 0.95), 31: Goal(0.48, 0.95)}


def rows() -> list[Row]:
    """Measures all figures."""
    directory = Path(tempfile.mkdtemp(prefix="bench-depth-", dir="/dev/shm"))
    servers = CopyServers(directory, SIZE)
    try:
        for depth in (1, *DEPTHS):
            _serve(servers, _chain(directory, depth), depth)
        times = in_turns({_way(depth): _reading(directory, depth) for depth in (1, *DEPTHS)}, RUNS)
    finally:
        servers.end()
        shutil.rmtree(directory)
    return [
        Row.of(
            f"read through {depth} layers",
            ratios(times[_way(1)], times[_way(depth)]),
            goal=goal,
            against="the same bytes in one layer",
            way=_way(depth),
        )
        for depth, goal in DEPTHS.items()
    ]


def _way(depth: int) -> str:
    return f"reading {depth} layers"


def _chain(directory: Path, depth: int) -> Path:
    """Makes a full and its increments; returns the newest."""
    order = random.Random(depth)
    top = directory / f"{depth}-0.qcow2"
    raw = directory / "raw"
    with raw.open("wb") as stream:
        for _ in range(SIZE // MIB):
            stream.write(os.urandom(MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(top)], check=True)
    raw.unlink()
    for number in range(1, depth):
        layer = directory / f"{depth}-{number}.qcow2"
        below = ["-F", "qcow2", "-b", top.name]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, str(layer), str(SIZE)], check=True)
        writes = [
            part
            for place in order.sample(range(SIZE // PIECE), CHANGES)
            for part in ("-c", f"write -q -P {number} {place * PIECE} {PIECE}")
        ]
        subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(layer)], check=True)
        top = layer
    return top


def _serve(servers: CopyServers, image: Path, depth: int) -> None:
    listening = servers.directory / f"{depth}.sock"
    servers.run(
        [
            "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=file,filename={image},cache.direct=on,aio=native,read-only=on",
            "--blockdev", "driver=qcow2,node-name=disk,file=file,read-only=on",
            "--nbd-server", f"addr.type=unix,addr.path={listening}",
            "--export", "type=nbd,id=export,node-name=disk,name=disk",
        ],
        TUNED,
    )  # fmt: skip
    servers.await_socket(listening)


def _reading(directory: Path, depth: int) -> Callable[[], object]:
    command = ["nbdcopy", f"nbd+unix:///disk?socket={directory}/{depth}.sock", "null:"]
    return lambda: subprocess.run(command, check=True)


if __name__ == "__main__":
    run_script(__doc__, rows)
