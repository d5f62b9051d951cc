"""Writes a small repository of the present format: `python tests/integration/repository/make_format_fixture.py`.

Run it once for each version of the format, before the version changes, and commit what it writes: the test of the
format reads the repositories of all past versions. Every file but the images is written as it is; images are packed,
since most of a qcow2 file is zeroes.
"""

from __future__ import annotations

import asyncio
import gzip
import shutil
import sys
import tempfile
from pathlib import Path

from repository_rig import CLUSTER, SIZE, Rig, open_rig

from sendense_blockio.extents import Extent
from sendense_repository.documents import FORMAT_VERSION
from sendense_repository.records import Holder

FIXTURES = Path(__file__).parent / "formats"
POINTS = 4
DELETED = "job-1"
"""One point is deleted, so that a merged layer is in the fixture."""


async def make(target: Path) -> None:
    """Writes the fixture of the present format."""
    with tempfile.TemporaryDirectory() as name:
        async with open_rig(Path(name) / "home") as rig:
            await _fill(rig)
            shutil.rmtree(target, ignore_errors=True)
            await asyncio.to_thread(_pack, rig.root, target)


async def _fill(rig: Rig) -> None:
    disk = bytearray(SIZE)
    parent = ""
    for number in range(POINTS):
        areas = [Extent(0, SIZE)] if number == 0 else [Extent(number * CLUSTER, 2 * CLUSTER)]
        for cluster in range(8) if number == 0 else (number,):
            disk[cluster * CLUSTER : (cluster + 1) * CLUSTER] = _cluster(number, cluster)
        if number:  # and zeroes over data
            disk[(number + 1) * CLUSTER : (number + 2) * CLUSTER] = bytes(CLUSTER)
        layer = await rig.backup(f"job-{number}", bytes(disk), areas, parent)
        parent = layer.layer.layer_id
    await rig.parts.deleter.delete(Holder("delete-1", 1), [DELETED], cascade=False)


def _cluster(number: int, cluster: int) -> bytes:
    """Content that packs well and is never the same twice."""
    return (f"cluster {cluster} of backup {number}. ".encode() * CLUSTER)[:CLUSTER]


def _pack(root: Path, target: Path) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            packed = target / path.relative_to(root)
            packed.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".qcow2":
                packed.with_name(f"{packed.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
            else:
                packed.write_bytes(path.read_bytes())


def unpack(source: Path, root: Path) -> None:
    """Makes a repository out of a fixture."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = root / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".gz":
                target.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            else:
                target.write_bytes(path.read_bytes())


if __name__ == "__main__":
    asyncio.run(make(FIXTURES / f"format-{FORMAT_VERSION}"))
    sys.stdout.write(f"wrote {FIXTURES / f'format-{FORMAT_VERSION}'}\n")
