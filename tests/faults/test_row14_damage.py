"""Row 14: truncated layers, torn sidecars and journals, flipped bits: verify names restore point and range of each.

Whoever restores is told before; other restore points are byte-identical. 1,000 random flips over a chain of six layers
are in tests/integration/repository/test_repository_bitflips.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from repository_rig import CLUSTER, VM, Rig, noise, open_rig

from sendense_repository.layout import LayerFiles, point_file
from sendense_repository.upkeep import Upkeep, build_upkeep

pytestmark = pytest.mark.faults


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


def truncate(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(content) - CLUSTER // 2, len(content))
    content[max(0, place)] ^= 16
    path.write_bytes(content)


async def verified(upkeep: Upkeep, backup_id: str) -> None:
    await upkeep.verification.start(backup_id, backup_id, bytes_per_second=0, max_age_seconds=0)
    async with asyncio.timeout(120):
        async for record in upkeep.verification.watch(backup_id):
            assert record.state != "failed", record.error_message


@pytest.mark.parametrize("spoil", [truncate, flip])
@pytest.mark.parametrize("part", ["sealed", "sidecar", "journal", "points file"])
async def test_row_14_damage_is_named_with_point_and_range(rig: Rig, part: str, spoil: Callable[[Path], None]) -> None:
    layers, disks = await rig.chain_of(3)
    other = await rig.backup("job-9", noise(len(disks[0]), 9))
    files: LayerFiles = layers[1].layer.files(rig.root)
    path = point_file(rig.root, VM, "job-1") if part == "points file" else getattr(files, part)
    spoil(path)
    upkeep = build_upkeep(rig.parts)

    for backup_id in ("job-0", "job-1", "job-2", "job-9"):
        await verified(upkeep, backup_id)

    known = {}
    for backup_id in ("job-0", "job-1", "job-2", "job-9"):
        point = (await rig.parts.points.get(backup_id)).point
        known[backup_id] = await upkeep.integrity.of_point(point)
    assert {name: each.state for name, each in known.items()} == {
        "job-0": "verified",
        "job-1": "corrupt",
        "job-2": "verified" if part == "points file" else "corrupt",
        "job-9": "verified",
    }
    for damage in known["job-1"].damages:
        assert damage.backup_id == "job-1"
        assert damage.file == str(path.relative_to(rig.root))
        assert damage.length or damage.file_length
    assert rig.content(layers[0]) == disks[0]
    assert rig.content(other) == noise(len(disks[0]), 9)
