"""Row 23: repositories of every version of the format are read, and a newer one is refused clearly, by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from make_format_fixture import FIXTURES, unpack
from repository_rig import VM, Rig, content, open_rig

from sendense_repository import documents
from sendense_repository.errors import RepositoryUnusable
from sendense_repository.layout import MARKER_NAME
from sendense_repository.upkeep import build_upkeep

pytestmark = pytest.mark.faults

VERSIONS = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
CONTENTS = {
    "job-0": "8cb836322b7996d6",
    "job-2": "3db3b5d2870a1796",
    "job-3": "6e5c8b03a278dfa1",
}
"""The first half of the SHA-256 of each point's disk in every fixture: the same script wrote them."""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path / "home") as opened:
        yield opened


def test_there_is_a_fixture_of_the_present_format() -> None:
    assert f"format-{documents.FORMAT_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
async def test_row_23_a_repository_of_each_version_is_read_imported_and_proved(
    rig: Rig, tmp_path: Path, version: str
) -> None:
    root = tmp_path / "old"
    await asyncio.to_thread(unpack, FIXTURES / version, root)
    await rig.parts.registry.create("old", "local", root)
    upkeep = build_upkeep(rig.parts)
    report = await upkeep.scanner.scan("old")
    assert [each.record.backup_id for each in report.importable] == sorted(CONTENTS)
    assert report.findings == []

    await upkeep.rebuilder.adopt("old", sorted(CONTENTS))

    for backup_id, digest in CONTENTS.items():
        placed = await rig.parts.points.get(backup_id)
        image = placed.layers[0].files(root).sealed
        found = hashlib.sha256(await asyncio.to_thread(content, image, rig.scratch)).hexdigest()
        assert found.startswith(digest), backup_id
        await upkeep.verification.start(backup_id, backup_id, bytes_per_second=0, max_age_seconds=0)
        async with asyncio.timeout(60):
            async for record in upkeep.verification.watch(backup_id):
                last = record
        assert last.state == "done"
        assert (await upkeep.integrity.of_point(placed.point)).state == "verified"


@pytest.mark.parametrize("name", [MARKER_NAME, f"{VM}/disks.json", f"{VM}/points/job-0.json"])
async def test_row_23_a_newer_format_is_refused_by_name(rig: Rig, tmp_path: Path, name: str) -> None:
    root = tmp_path / "newer"
    await asyncio.to_thread(unpack, FIXTURES / VERSIONS[-1], root)
    document = json.loads((root / name).read_text()) | {"format": documents.FORMAT_VERSION + 1}
    document["digest"] = documents.digest_of(document)
    (root / name).write_text(json.dumps(document))

    if name == MARKER_NAME:
        with pytest.raises(RepositoryUnusable, match=f"its format is {documents.FORMAT_VERSION + 1}"):
            await rig.parts.registry.create("newer", "local", root)
        return
    await rig.parts.registry.create("newer", "local", root)
    report = await build_upkeep(rig.parts).scanner.scan("newer")
    (finding,) = (each for each in report.findings if each.path == name)
    assert f"its format is {documents.FORMAT_VERSION + 1}" in finding.finding
