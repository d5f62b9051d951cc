"""1,000 random bit flips over a chain of six layers: verification finds each, naming restore point and range.

Each round flips bits in two files of each layer, each in a chosen kind of place, and takes them back.
"""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository_rig import Rig, open_rig

from sendense_repository import layout
from sendense_repository.integrity import Damage
from sendense_repository.layer_check import LayerCheck, check_point_file
from sendense_repository.parentage import ancestry
from sendense_repository.reading_back import Pace, ReadBack, open_read_back
from sendense_repository.records import LayerRecord

LAYERS = 6
FLIPS = int(os.environ.get("SENDENSE_TEST_BIT_FLIPS", "1000"))
KINDS = (
    ("data", "points file"),
    ("journal", "sidecar"),
    ("header", "points file"),
    ("L1 table", "points file"),
    ("journal", "sidecar"),
    ("L2 table", "points file"),
    ("refcount table", "points file"),
    ("journal", "sidecar"),
    ("refcount block", "points file"),
)
"""What is flipped of a layer at once; pairs of which neither hides the other."""

CLUSTER = layout.CLUSTER_SIZE
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00


@dataclass(frozen=True)
class Place:
    """Bytes of a file that may be flipped; `disk_start` is where data is on the disk."""

    file: Path
    start: int
    length: int
    disk_start: int = 0


@dataclass(frozen=True)
class Flip:
    """One flipped bit."""

    layer: LayerRecord
    kind: str
    place: Place
    offset: int
    bit: int

    def apply(self) -> None:
        with self.place.file.open("r+b") as stream:
            stream.seek(self.offset)
            (byte,) = stream.read(1)
            stream.seek(self.offset)
            stream.write(bytes([byte ^ 1 << self.bit]))


def tables(image: Path) -> dict[str, list[tuple[int, ...]]]:
    """Offsets and lengths of an image's tables and data clusters (these with their place on the disk)."""
    with image.open("rb") as stream:
        head = stream.read(104)
        l1_entries, l1_offset, refcount_offset, refcount_clusters = struct.unpack_from(">IQQI", head, 36)
        stream.seek(l1_offset)
        l1 = struct.unpack(f">{l1_entries}Q", stream.read(8 * l1_entries))
        data: list[tuple[int, ...]] = []
        for index, table_entry in enumerate(l1):
            if table_entry & OFFSET_MASK:
                stream.seek(table_entry & OFFSET_MASK)
                for number, entry in enumerate(struct.unpack(f">{CLUSTER // 8}Q", stream.read(CLUSTER))):
                    if entry & OFFSET_MASK and not entry & 1:
                        data.append((entry & OFFSET_MASK, CLUSTER, (index * (CLUSTER // 8) + number) * CLUSTER))
        stream.seek(refcount_offset)
        table = struct.unpack(f">{refcount_clusters * CLUSTER // 8}Q", stream.read(refcount_clusters * CLUSTER))
    return {
        "data": data,
        "header": [(0, CLUSTER)],
        "L1 table": [(l1_offset, 8 * l1_entries)],
        "L2 table": [(entry & OFFSET_MASK, CLUSTER) for entry in l1 if entry & OFFSET_MASK],
        "refcount table": [(refcount_offset, refcount_clusters * CLUSTER)],
        "refcount block": [(entry & OFFSET_MASK, CLUSTER) for entry in table if entry & OFFSET_MASK],
    }


def used_part(start: int, length: int, kind: str, chosen: random.Random) -> int:
    """Half of the flips hit the first bytes of a table, where its entries are; the others hit any."""
    if kind != "data" and chosen.random() < 0.5:
        return start + chosen.randrange(min(length, 512))
    return start + chosen.randrange(length)


def random_flip(rig: Rig, layer: LayerRecord, kind: str, chosen: random.Random) -> Flip:
    files = layer.files(rig.root)
    whole = {
        "journal": files.journal,
        "sidecar": files.sidecar,
        "points file": layout.point_file(rig.root, layer.vm_uuid, layer.backup_id),
    }
    if kind in whole:
        place = Place(whole[kind], 0, whole[kind].stat().st_size)
    else:
        place = Place(files.sealed, *chosen.choice(tables(files.sealed)[kind]))
    offset = used_part(place.start, place.length, kind, chosen)
    return Flip(layer, kind, place, offset, chosen.randrange(8))


async def damages(rig: Rig, session: ReadBack, layers: list[LayerRecord]) -> list[Damage]:
    """Verifies every layer and points file."""
    known = {layer.layer_id: layer for layer in layers}
    found: list[Damage] = []
    for layer in layers:
        check = LayerCheck(
            session, rig.root, ancestry(layer, known), Pace(0), threading.Event(), on_bytes=lambda _read: None
        )
        found += await check.run()
        point = await rig.parts.catalogue.points.find(layer.backup_id)
        assert point is not None
        found += check_point_file(rig.root, point)
    return found


def names(damage: Damage, flip: Flip, rig: Rig) -> bool:
    """Whether a damage names the flip's restore point, file and range."""
    if damage.backup_id != flip.layer.backup_id or damage.file != str(flip.place.file.relative_to(rig.root)):
        return False
    if flip.kind != "data":
        return damage.part == flip.kind and damage.file_offset <= flip.offset < damage.file_offset + damage.file_length
    on_disk = flip.place.disk_start + flip.offset - flip.place.start
    return damage.part == "data" and damage.offset <= on_disk < damage.offset + damage.length


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


async def test_verify_finds_every_flipped_bit_and_none_in_a_clean_chain(rig: Rig) -> None:
    placed, _ = await rig.chain_of(LAYERS)
    layers = [each.layer for each in placed]
    chosen = random.Random(20261123)
    missed: list[str] = []
    flipped = 0
    async with open_read_back() as session:
        assert await damages(rig, session, layers) == []
        while flipped < FLIPS:
            flips = [
                random_flip(rig, layer, kind, chosen)
                for number, layer in enumerate(layers)
                for kind in KINDS[(flipped // 2 + number) % len(KINDS)]
            ]
            for flip in flips:
                flip.apply()
            found = await damages(rig, session, layers)
            missed += [
                f"{flip.kind} {flip.offset}.{flip.bit} of {flip.layer.name}"
                for flip in flips
                if not any(names(damage, flip, rig) for damage in found)
            ]
            for flip in flips:
                flip.apply()
            flipped += len(flips)
        assert await damages(rig, session, layers) == []
    assert not missed, f"{len(missed)} of {flipped} flips were missed: {missed[:20]}"
