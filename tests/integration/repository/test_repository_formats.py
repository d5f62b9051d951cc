"""Repositories of every version of the format are read, a newer one is refused by name, no Sendense code is needed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, CONTEXT, KIB, MIB, SIZE, VM, Rig, entries_of, noise, open_rig, qemu, write_image

from sendense_blockio.extents import Extent, split, total
from sendense_blockio.journal import Entry, encode_entries
from sendense_repository.layout import point_file
from sendense_repository.point import NewPoint
from sendense_repository.records import Holder
from sendense_repository.retention import Rules
from sendense_repository.upkeep import build_upkeep


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path / "home") as opened:
        yield opened


async def test_the_way_out_needs_no_sendense_code(rig: Rig, tmp_path: Path) -> None:
    _, disks = await rig.chain_of(6)
    elsewhere = tmp_path / "copied by hand"
    await asyncio.to_thread(shutil.copytree, rig.root, elsewhere)
    for number, disk in enumerate(disks):
        point = json.loads(point_file(elsewhere, VM, f"job-{number}").read_text())
        image = elsewhere / VM / point["layers"][0]["path"]
        qemu("qemu-img", "check", "-q", "-f", "qcow2", image)
        for form in ("raw", "vmdk"):
            target = tmp_path / f"restored.{form}"
            qemu("qemu-img", "convert", "-f", "qcow2", "-O", form, image, target)
            if form == "raw":
                assert target.read_bytes() == disk
            else:
                qemu("qemu-img", "compare", "-f", form, "-F", "raw", target, tmp_path / "restored.raw")


LARGE = 500 * 10**9 // CLUSTER * CLUSTER
POINT_COSTS = 44 * KIB
"""Of image (header, L1, L2, refcounts in blocks of 4 KiB; the file system's own), journal, sidecar and points file."""
AREA_COSTS = 4 * KIB
"""The block of the L2 table that describes an area: it reaches over 32 MiB."""


def taken(root: Path) -> int:
    """Bytes that everything below a root takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


async def test_a_chain_on_a_500_gb_disk_takes_what_was_written(rig: Rig) -> None:
    """Only sizes are asserted; `make bench` prints them and the times."""
    places = [Extent(number * (LARGE // 32) // CLUSTER * CLUSTER, 4 * CLUSTER) for number in range(16)]
    parent, before = "", taken(rig.root)
    for number in range(6):
        areas = places if number == 0 else [Extent(places[number].offset, CLUSTER)]
        parent = await _sparse_backup(rig, f"big-{number}", areas, parent)
        now = taken(rig.root)
        assert now - before <= total(areas) + POINT_COSTS + AREA_COSTS * len(areas)
        before = now

    (chain,) = await rig.parts.chains.of_context(CONTEXT)
    assert [layer.virtual_size_bytes for layer in chain.layers] == [LARGE] * 6
    assert chain.total_size_bytes <= taken(rig.root)
    plan = await build_upkeep(rig.parts).retention.plan("local", [], Rules(keep_last=2))
    assert sum(not each.verdict.keep for each in plan.points) == 4


async def test_a_realistic_increment_takes_two_percent_more_than_was_written_and_zeroes_take_nothing(rig: Rig) -> None:
    chosen = random.Random(3)
    places, end = [], 0
    while total(places) < 16 * MIB:
        places.append(Extent(end + chosen.randrange(1, 4000) * CLUSTER, chosen.choice((1, 1, 2, 4, 16)) * CLUSTER))
        end = places[-1].end
    full = await _sparse_backup(rig, "full", [Extent(0, CLUSTER)], "")
    before = taken(rig.root)
    increment = await _sparse_backup(rig, "incr", places, full)
    written = taken(rig.root) - before
    assert written <= total(places) + POINT_COSTS + AREA_COSTS * len(places)
    assert written < 1.02 * total(places)

    before = taken(rig.root)
    await _sparse_backup(rig, "zeroes", [Extent(0, 16 * MIB)], increment, zero=True)
    assert taken(rig.root) - before <= POINT_COSTS + AREA_COSTS


async def test_what_a_killed_writer_took_ahead_comes_back_with_the_seal(rig: Rig) -> None:
    placed = await rig.written("job-0", noise(SIZE, 1))
    image = rig.image(placed)
    needed = image.stat().st_blocks * 512
    with image.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), image.stat().st_size, 32 * MIB)
    assert image.stat().st_blocks * 512 >= needed + 32 * MIB

    sealed = await rig.parts.sealer.seal(Holder("job-0", 1), placed.layer.layer_id, "first backup")

    assert rig.image(sealed).stat().st_blocks * 512 == sealed.layer.stored_bytes < needed
    assert rig.content(sealed) == noise(SIZE, 1)


async def _sparse_backup(rig: Rig, job: str, areas: list[Extent], parent: str, *, zero: bool = False) -> str:
    holder = Holder(job, 1)
    placed = await rig.layer(job, parent=parent, size=LARGE)
    layer_id = placed.layer.layer_id
    await rig.parts.layers.set_areas(holder, layer_id, areas)
    disk = _SparseDisk(zlib.crc32(job.encode()) & 0xFFFF)
    image, data, zeroes = placed.layer.files(rig.root).image, [] if zero else areas, areas if zero else []
    if zero:
        entries = [Entry(area.offset, area.length, None) for area in areas]
    else:
        entries = [entry for area in areas for entry in entries_of(disk, [area])]  # type: ignore[arg-type]
    await asyncio.to_thread(write_image, image, disk, data, zeroes, rig.scratch)  # type: ignore[arg-type]
    await rig.parts.layers.append(holder, layer_id, 1, encode_entries(entries))
    await rig.parts.sealer.seal(holder, layer_id, "test")
    await rig.parts.points.commit(holder, NewPoint("local", VM, "web", CONTEXT, [layer_id], None, ""))
    return layer_id


class _SparseDisk:
    """A disk whose bytes are made up where they are looked at."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __getitem__(self, part: slice) -> bytes:
        clusters = split([Extent(part.start, part.stop - part.start)], CLUSTER)
        return b"".join(noise(each.length, self._seed + each.offset // CLUSTER) for each in clusters)
