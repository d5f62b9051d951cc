"""Consolidating five increments, the proof of equality included, against a plain `qemu-img commit` that proves nothing.

On XFS with reflinks and on ext4 without, each in a loop image. `qemu-img commit` writes into the lowest layer in place,
which Sendense never does; its time includes an fsync, its bytes are counted like ours: what the device was asked to
write until a sync of the file system returned. Each sample works on a fresh copy of the same repository, which is in
nobody's page cache.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from figures import MIB, Goal, Row, ratios, run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration" / "repository"))  # the tests' own helpers

from blake3 import blake3
from repository_rig import Rig, open_rig, qemu

from sendense_blockio.extents import Extent, split
from sendense_blockio.journal import Entry, encode_entries
from sendense_repository.records import Holder

SIZE = 2048 * MIB
FULL = [Extent(0, 256 * MIB)]
INCREMENTS = 5
RUNS = 3
IMAGE_BYTES = 4 << 30
BASE = "qemu-img commit of the same layers"


@dataclass(frozen=True)
class Way:
    """One consolidation: which points go into the last one, and which layer a plain commit writes into."""

    name: str
    gone: tuple[str, ...]
    lowest: int


WAYS = (
    Way("5 increments into one", tuple(f"job-{number}" for number in range(1, INCREMENTS)), 1),
    Way("5 increments and their full into one", tuple(f"job-{number}" for number in range(INCREMENTS)), 0),
)


def rows() -> list[Row]:
    """Measures and returns all figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if os.geteuid() != 0:
        raise SystemExit("mounting loop images needs root")
    measured: list[Row] = []
    for name, command in (
        ("XFS with reflinks", ["mkfs.xfs", "-q", "-m", "reflink=1"]),
        ("ext4", ["mkfs.ext4", "-q", "-F"]),
    ):
        with mounted(command) as place:
            asyncio.run(_build(place / "template"))
            for way in WAYS:
                measured += _measure(name, way, place)
    return measured


@contextmanager
def mounted(mkfs: list[str]) -> Iterator[Path]:
    """A new file system in a loop image, mounted."""
    folder = Path(tempfile.mkdtemp(prefix="bench-merge-", dir="/var/tmp"))
    image, place = folder / "image", folder / "m"
    with image.open("wb") as stream:
        stream.truncate(IMAGE_BYTES)
    place.mkdir()
    subprocess.run([*mkfs, str(image)], check=True, stdout=subprocess.DEVNULL)
    try:
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        shutil.rmtree(folder)


async def _build(home: Path) -> None:
    """A full of 256 MiB and five increments of 144 MiB, each of which overwrites a third of the one before."""
    async with open_rig(home) as rig:
        parent = ""
        for number in range(INCREMENTS + 1):
            areas = FULL if number == 0 else [Extent((number * 48 + part * 512) * MIB, 72 * MIB) for part in range(2)]
            parent = await _backup(rig, f"job-{number}", areas, parent)


async def _backup(rig: Rig, job: str, areas: list[Extent], parent: str) -> str:
    placed = await rig.layer(job, parent=parent, size=SIZE)
    layer_id = placed.layer.layer_id
    await rig.parts.layers.set_areas(Holder(job, 1), layer_id, areas)
    entries: list[Entry] = []
    commands: list[str] = []
    for number, area in enumerate(areas):
        content = os.urandom(area.length)
        source = rig.scratch / f"area-{number}"
        await asyncio.to_thread(source.write_bytes, content)
        commands += ["-c", f"write -q -s {source} {area.offset} {area.length}"]
        for piece in split([area], MIB):
            start = piece.offset - area.offset
            entries.append(Entry(piece.offset, piece.length, blake3(content[start : start + piece.length]).digest()))
    image = placed.layer.files(rig.root).image
    await asyncio.to_thread(qemu, "qemu-io", "-f", "qcow2", *commands, "-c", "flush", image)
    for source in rig.scratch.iterdir():
        source.unlink()
    await rig.parts.layers.append(Holder(job, 1), layer_id, 1, encode_entries(entries))
    await rig.commit(job, await rig.parts.sealer.seal(Holder(job, 1), layer_id, "bench"))
    return layer_id


def _measure(file_system: str, way: Way, place: Path) -> list[Row]:
    device = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", str(place)], capture_output=True, text=True, check=True
    ).stdout.strip()
    ours: list[tuple[float, int]] = []
    plain: list[tuple[float, int]] = []
    for _ in range(RUNS):
        for taken, work in ((ours, _consolidate), (plain, _commit)):
            home = _copy(place)
            before = _written(device)
            seconds = work(home, way)
            subprocess.run(["sync", "-f", str(place)], check=True)
            taken.append((seconds, _written(device) - before))
            shutil.rmtree(home)
    against = f"{BASE}, {file_system}"
    time_goal = Goal(2.0, 1.2, better="lower")
    return [
        Row.of(
            f"{way.name}: time",
            ratios([each for each, _ in ours], [each for each, _ in plain]),
            goal=time_goal,
            against=against,
        ),
        Row.of(
            f"{way.name}: bytes",
            ratios([float(each) for _, each in ours], [float(each) for _, each in plain]),
            goal=time_goal,
            against=against,
        ),
        Row.of(f"{way.name}: Sendense, {file_system}", [each for each, _ in ours], unit="s"),
    ]


def _copy(place: Path) -> Path:
    """A copy of the repository with blocks of its own, where its catalogue expects it."""
    home = place / "copy"
    subprocess.run(["cp", "-r", "--reflink=never", str(place / "template"), str(home)], check=True)
    with closing(sqlite3.connect(home / "db.sqlite")) as database, database:
        config = f'{{"path": "{home / "backups"}"}}'
        database.execute("UPDATE backup_repositories SET config = ?", (config,))
    subprocess.run(["sync", "-f", str(place)], check=True)
    for path in home.rglob("*.qcow2"):  # layers that were made days ago are in nobody's page cache
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return home


def _consolidate(home: Path, way: Way) -> float:
    async def work() -> float:
        async with open_rig(home) as rig:
            began = time.monotonic()
            await rig.parts.deleter.delete(Holder("merge", 1), way.gone, cascade=False)
            return time.monotonic() - began

    return asyncio.run(work())


def _commit(home: Path, way: Way) -> float:
    layers = sorted((home / "backups").rglob("full-*.qcow2")) + sorted((home / "backups").rglob("incr-*.qcow2"))
    for layer in layers:
        layer.chmod(0o644)
    base, top = layers[way.lowest], layers[-1]
    began = time.monotonic()
    command = ["qemu-img", "commit", "-q", "-d", "-f", "qcow2", "-b", str(base), str(top)]
    subprocess.run(command, check=True)
    subprocess.run(["sync", str(base)], check=True)
    return time.monotonic() - began


def _written(device: str) -> int:
    """Bytes that a device was asked to write since it is there (field 7 of its stat file, in sectors)."""
    fields = Path(f"/sys/block/{Path(device).name}/stat").read_text().split()
    return int(fields[6]) * 512


if __name__ == "__main__":
    run_script(__doc__, rows)
