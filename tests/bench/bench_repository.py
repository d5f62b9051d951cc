"""Verification against qemu's own reading, and what a long chain on a large, sparse disk costs to look at.

Reading a restore point of 512 MiB back with all proofs, as a ratio to `qemu-img convert` of the same image to nowhere
(higher is better). Then five increments on a disk of 500 GB: how long creating, listing, chain and plan take, and what
everything takes on storage beyond the bytes that were written: five changes of 64 KiB on a full of 32 MiB, and
1 GiB that changed in pieces of 64 KiB to 1 MiB all over the disk.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import structlog
from figures import GIB, MIB, Goal, Row, ratios, run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration" / "repository"))  # the tests' own helpers

from blake3 import blake3
from repository_rig import CLUSTER, CONTEXT, VM, Rig, noise, open_rig, write_image

from sendense_blockio.extents import Extent, split, total
from sendense_blockio.journal import Entry, encode_entries
from sendense_repository.layer_check import LayerCheck
from sendense_repository.point import NewPoint
from sendense_repository.reading_back import Pace, ReadBack, open_read_back
from sendense_repository.records import Holder, LayerRecord
from sendense_repository.retention import Rules
from sendense_repository.upkeep import build_upkeep

SIZE = 512 * MIB
RUNS = 5
LARGE = 500 * 10**9 // CLUSTER * CLUSTER
INCREMENTS = 5
SECOND = Goal(1.0, better="lower")


def rows() -> list[Row]:
    """Measures and returns all figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="bench-repository-") as name:
        return asyncio.run(_measure(Path(name)))


async def _measure(home: Path) -> list[Row]:
    async with open_rig(home) as rig:
        found = await _large_disk(rig)
        layer = await _backup(rig, "full", SIZE, [Extent(0, SIZE)], "")
        async with open_read_back() as session:
            ours = [await _verify(rig, session, layer) for _ in range(RUNS + 1)][1:]
        theirs = [await asyncio.to_thread(_convert, layer.files(rig.root).sealed) for _ in range(RUNS + 1)][1:]
        speed = Row.of("verifying 512 MiB", ratios(theirs, ours), unit="×", against="qemu-img convert to nowhere")
        return [speed, *found]


async def _verify(rig: Rig, session: ReadBack, layer: LayerRecord) -> float:
    began = time.perf_counter()
    check = LayerCheck(session, rig.root, [layer], Pace(0), threading.Event(), on_bytes=lambda _read: None)
    damages = await check.run()
    if damages:
        raise RuntimeError(str(damages[0]))
    return time.perf_counter() - began


def _convert(image: Path) -> float:
    began = time.perf_counter()
    target = f"driver=null-co,size={SIZE}"
    command = ["qemu-img", "convert", "-n", "-t", "none", "-T", "none", "-f", "qcow2", "--target-image-opts"]
    subprocess.run([*command, str(image), target], check=True)
    return time.perf_counter() - began


async def _large_disk(rig: Rig) -> list[Row]:
    step = LARGE // 64 // CLUSTER * CLUSTER
    places = [Extent(number * step, 16 * CLUSTER) for number in range(32)]
    parent = await _backup(rig, "large-0", LARGE, places, "")
    seconds: dict[str, list[float]] = {"create": [], "list": [], "chain": [], "plan": []}
    written = total(places)
    for number in range(1, INCREMENTS + 1):
        areas = [Extent(places[number].offset, CLUSTER)]
        began = time.perf_counter()
        parent = await _backup(rig, f"large-{number}", LARGE, areas, parent.layer_id)
        seconds["create"].append(time.perf_counter() - began)
        written += CLUSTER
    repository = await rig.parts.registry.get("local")
    upkeep = build_upkeep(rig.parts)
    for _ in range(RUNS):
        points = rig.parts.catalogue.points
        await _timed(seconds["list"], points.of_vm(repository.repository_id, VM))
        await _timed(seconds["chain"], rig.parts.chains.of_context(CONTEXT))
        await _timed(seconds["plan"], upkeep.retention.plan("local", [], Rules(keep_last=2)))
    small = _surplus(_taken(rig), written)
    many = _scattered(random.Random(20261124))
    before = _taken(rig)
    await _backup(rig, "large-many", LARGE, many, parent.layer_id)
    names = {
        "create": "an increment on 500 GB, from layer to point",
        "list": "listing its points",
        "chain": "its chain of 6",
        "plan": "its retention plan",
    }
    found = [Row.of(names[name], samples, unit="s", goal=SECOND) for name, samples in seconds.items()]
    return [
        *found,
        Row.of("its chain on storage, every file", [small], unit="%", against="more than was written"),
        Row.of(
            "1 GiB in 64K to 1M pieces, every file",
            [_surplus(_taken(rig) - before, total(many))],
            unit="%",
            against="more than was written",
        ),
    ]


def _scattered(chosen: random.Random) -> list[Extent]:
    """Changes of 1 GiB, spread over the disk."""
    places: list[Extent] = []
    end = 0
    while total(places) < GIB:
        places.append(Extent(end + chosen.randrange(1, 4000) * CLUSTER, chosen.choice((1, 1, 2, 4, 16)) * CLUSTER))
        end = places[-1].end
    return places


def _surplus(taken: int, written: int) -> float:
    """How much more was taken than was written, in percent."""
    return 100 * (taken / written - 1)


def _taken(rig: Rig) -> int:
    """Bytes that everything in the repository takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in rig.root.rglob("*") if path.is_file())


async def _timed(samples: list[float], work: Awaitable[Any]) -> None:
    began = time.perf_counter()
    await work
    samples.append(time.perf_counter() - began)


async def _backup(rig: Rig, job: str, size: int, areas: Sequence[Extent], parent: str) -> LayerRecord:
    holder = Holder(job, 1)
    placed = await rig.layer(job, parent=parent, size=size)
    layer_id = placed.layer.layer_id
    await rig.parts.layers.set_areas(holder, layer_id, areas)
    disk = _Disk()
    entries = [
        Entry(piece.offset, piece.length, blake3(disk[piece.offset : piece.end]).digest())
        for piece in split(areas, MIB)
    ]
    image = placed.layer.files(rig.root).image
    await asyncio.to_thread(write_image, image, disk, areas, [], rig.scratch)  # type: ignore[arg-type]
    await rig.parts.layers.append(holder, layer_id, 1, encode_entries(entries))
    await rig.parts.sealer.seal(holder, layer_id, "bench")
    point = await rig.parts.points.commit(holder, NewPoint("local", VM, "web", CONTEXT, [layer_id], None, ""))
    return point.layers[0]


class _Disk:
    """A disk whose bytes are made up where they are looked at, the same each time."""

    def __getitem__(self, part: slice) -> bytes:
        pieces = split([Extent(part.start, part.stop - part.start)], MIB)
        return b"".join(noise(piece.length, piece.offset // CLUSTER) for piece in pieces)


if __name__ == "__main__":
    run_script(__doc__, rows)
