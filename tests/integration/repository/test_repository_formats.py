"""Repositories of every version of the format are read, a newer one is refused by name, no Sendense code is needed."""

from __future__ import annotations

import asyncio
import json
import shutil
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, CONTEXT, KIB, VM, Rig, entries_of, noise, open_rig, qemu, write_image

from sendense_blockio.extents import Extent
from sendense_blockio.journal import encode_entries
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


async def test_a_chain_on_a_500_gb_disk_uses_no_more_than_what_was_written(rig: Rig) -> None:
    """Only sizes are asserted; `make bench` prints the times."""
    virtual = 500 * 10**9 // CLUSTER * CLUSTER
    written = [Extent(number * (virtual // 32) // CLUSTER * CLUSTER, 4 * CLUSTER) for number in range(16)]
    parent = ""
    for number in range(6):
        areas = written if number == 0 else [Extent(written[number].offset, CLUSTER)]
        parent = await _sparse_backup(rig, f"big-{number}", virtual, areas, parent)

    (chain,) = await rig.parts.chains.of_context(CONTEXT)
    assert [layer.virtual_size_bytes for layer in chain.layers] == [virtual] * 6
    data = sum(area.length for area in written) + 5 * CLUSTER
    # Each touched stretch of 512 MiB costs an L2 table; a layer costs header, L1, refcounts and its documents.
    tables = (len(written) + 5) * CLUSTER + 6 * (8 * CLUSTER + 256 * KIB)
    assert chain.total_size_bytes <= data + tables
    plan = await build_upkeep(rig.parts).retention.plan("local", [], Rules(keep_last=2))
    assert sum(not each.verdict.keep for each in plan.points) == 4


async def _sparse_backup(rig: Rig, job: str, size: int, areas: list[Extent], parent: str) -> str:
    holder = Holder(job, 1)
    placed = await rig.layer(job, parent=parent, size=size)
    layer_id = placed.layer.layer_id
    await rig.parts.layers.set_areas(holder, layer_id, areas)
    disk = _SparseDisk(zlib.crc32(job.encode()) & 0xFFFF)
    entries = [entry for area in areas for entry in entries_of(disk, [area])]  # type: ignore[arg-type]
    await asyncio.to_thread(write_image, placed.layer.files(rig.root).image, disk, areas, [], rig.scratch)  # type: ignore[arg-type]
    await rig.parts.layers.append(holder, layer_id, 1, encode_entries(entries))
    await rig.parts.sealer.seal(holder, layer_id, "test")
    await rig.parts.points.commit(holder, NewPoint("local", VM, "web", CONTEXT, [layer_id], None, ""))
    return layer_id


class _SparseDisk:
    """A disk whose bytes are made up where they are looked at."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __getitem__(self, part: slice) -> bytes:
        return noise(part.stop - part.start, self._seed + part.start // CLUSTER)
