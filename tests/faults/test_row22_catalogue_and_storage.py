"""Row 22: catalogue ahead of or behind storage: both reported, unknown files never deleted, rebuilt on request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from repository_rig import CONTEXT, VM, Rig, open_rig, tree

from sendense_repository.layout import point_file
from sendense_repository.scan import Report
from sendense_repository.upkeep import Upkeep, build_upkeep

pytestmark = pytest.mark.faults


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path / "first") as opened:
        yield opened


@pytest.fixture
async def second(tmp_path: Path) -> AsyncIterator[Rig]:
    """A catalogue that knows nothing of the first one's repository."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_rig(tmp_path / "second"))


async def scan(rig: Rig) -> Report:
    return await build_upkeep(rig.parts).scanner.scan("local")


def kinds(report: Report) -> dict[str, str]:
    """Of each finding the file's name and the kind."""
    return {Path(each.path).name: each.kind for each in report.findings}


async def take_over(second: Rig, first: Rig) -> Upkeep:
    """Registers the first one's repository, as it is on storage, in the second catalogue, under the name `old`."""
    await second.parts.registry.create("old", "local", first.root)
    return build_upkeep(second.parts)


async def test_row_22_a_catalogue_ahead_of_storage_is_reported(rig: Rig) -> None:
    layers, _ = await rig.chain_of(3)
    point_file(rig.root, VM, "job-2").unlink()
    layers[1].layer.files(rig.root).journal.unlink()

    report = await scan(rig)

    assert kinds(report) == {"job-2.json": "missing", layers[1].layer.files(rig.root).journal.name: "damaged"}
    assert report.agreed == 1
    assert (await rig.parts.points.get("job-2")).point.backup_id == "job-2"


async def test_row_22_unknown_files_are_reported_and_left_alone(rig: Rig) -> None:
    await rig.chain_of(1)
    foreign = [
        rig.root / "notes.txt",
        rig.root / VM / "photo.jpg",
        rig.root / VM / "disk-0" / "mine.qcow2",
        rig.root / VM / "disk-0" / "incr-20200101-000000.qcow2",
        rig.root / VM / ".new-left",
    ]
    for path in foreign:
        path.write_bytes(b"somebody's")
    (rig.root / VM / "disk-0" / "link").symlink_to("/etc")

    report = await scan(rig)

    assert kinds(report) == {
        "notes.txt": "unknown",
        "photo.jpg": "unknown",
        "mine.qcow2": "unknown",
        "link": "unknown",
        "incr-20200101-000000.qcow2": "uncommitted",
        ".new-left": "leftover",
    }
    assert all(path.read_bytes() == b"somebody's" for path in foreign)


async def test_a_lost_catalogue_is_rebuilt_from_storage_alone(rig: Rig, second: Rig) -> None:
    layers, disks = await rig.chain_of(4)
    before = tree(rig.root)
    upkeep = await take_over(second, rig)
    report = await upkeep.scanner.scan("old")
    assert [each.record.backup_id for each in report.importable] == [f"job-{number}" for number in range(4)]

    adopted = await upkeep.rebuilder.adopt("old", [each.record.backup_id for each in report.importable])

    assert adopted == [f"job-{number}" for number in range(4)]
    for number in range(4):
        mine = await second.parts.points.get(f"job-{number}")
        theirs = await rig.parts.points.get(f"job-{number}")
        assert mine.point == theirs.point
        assert [layer.layer_id for layer in mine.layers] == [layer.layer_id for layer in theirs.layers]
        assert mine.layers[0].digest == theirs.layers[0].digest
    (chain,) = await second.parts.chains.of_context(CONTEXT)
    assert (len(chain.layers), chain.current) == (4, True)
    assert tree(rig.root) == before
    again = await upkeep.scanner.scan("old")
    assert (again.agreed, again.importable, again.findings) == (4, [], [])
    assert await upkeep.rebuilder.adopt("old", ["job-0"]) == []
    # The chain goes on: the next increment builds on the imported point.
    second.root = rig.root
    wanted = await second.parts.points.latest("old", VM)
    assert wanted.layers[0].layer_id == layers[3].layer.layer_id
    assert rig.content(layers[3]) == disks[3]
