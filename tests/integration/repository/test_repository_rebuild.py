"""Scan and rebuild: storage against catalogue both ways; whole points come back, nothing else, nothing is deleted."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from repository_rig import CLUSTER, VM, Rig, noise, open_rig, tree

from sendense_blockio.extents import Extent
from sendense_repository import documents
from sendense_repository.errors import LayerDamaged, PointNotFound, RepositoryUnusable
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.layout import MARKER_NAME
from sendense_repository.options import RepositoryOptions
from sendense_repository.parentage import SIDECAR_KIND
from sendense_repository.records import Holder, PlacedLayer
from sendense_repository.scan import Report
from sendense_repository.upkeep import Upkeep, build_upkeep

OTHER_VM = "564d8a2c-9999-2222-3333-0123456789ab"


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


async def test_a_clean_repository_agrees_with_its_catalogue(rig: Rig) -> None:
    await rig.chain_of(3)
    before = tree(rig.root)

    report = await scan(rig)

    assert (report.agreed, report.importable, report.findings) == (3, [], [])
    assert tree(rig.root) == before


async def test_a_merged_layer_is_imported_under_the_names_that_storage_gives_it(rig: Rig, second: Rig) -> None:
    layers, disks = await rig.chain_of(4)
    await rig.parts.deleter.delete(Holder("delete", 1), ["job-1", "job-2"], cascade=False)
    upkeep = await take_over(second, rig)

    await upkeep.rebuilder.adopt("old", ["job-3", "job-0"], "ctx-other")

    assert (await second.parts.points.get("job-3")).point.vm_context_id == "ctx-other"
    verification = await upkeep.verification.start("v", "job-3", bytes_per_second=0, max_age_seconds=0)
    assert verification.state == "running"
    async with asyncio.timeout(60):
        async for record in upkeep.verification.watch("v"):
            last = record
    assert last.state == "done"
    assert (await upkeep.integrity.of_point((await second.parts.points.get("job-3")).point)).state == "verified"
    assert rig.content(layers[3]) == disks[3]


async def doubted(rig: Rig, repository: str) -> dict[str, str]:
    """Why each point may be wrong, as the catalogue has it."""
    repository_id = (await rig.parts.registry.get(repository)).repository_id
    points = await rig.parts.catalogue.points.of_vm(repository_id, VM)
    known = await IntegrityView(rig.parts.catalogue).of_points(points)
    return {backup_id: each.suspicion for backup_id, each in known.items() if each.suspicion}


async def test_doubts_are_kept_on_storage_and_imported_with_their_points(rig: Rig, second: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    newest = await rig.sealed("job-3", disks[-1], [Extent(60 * CLUSTER, CLUSTER)], parent=layers[-1].layer.layer_id)
    areas = [Extent(2 * CLUSTER, CLUSTER)]
    await rig.parts.audits.mark_suspect(Holder("job-3", 1), newest.layer.layer_id, areas, "one block differs")
    files = [placed.layer.files(rig.root) for placed in layers]
    assert [each.doubt.exists() for each in files] == [False, False, True]
    assert not any(name.endswith(".doubt") for name in kinds(await scan(rig)))

    files[2].doubt.unlink()
    await rig.restart()
    assert files[2].doubt.exists(), "what the catalogue knows is written again"
    await rig.parts.layers.discard(Holder("job-3", 1), newest.layer.layer_id)
    upkeep = await take_over(second, rig)
    await upkeep.rebuilder.adopt("old", ["job-0", "job-1", "job-2"])
    assert await doubted(second, "old") == {"job-2": "one block differs"}

    await rig.parts.deleter.delete(Holder("delete", 1), ["job-2"], cascade=True)
    assert not any(path.name.endswith(".doubt") for path in rig.root.rglob("*")), "it goes with its layer"


async def test_a_doubt_that_cannot_be_read_is_a_doubt(rig: Rig, second: Rig) -> None:
    layers, _ = await rig.chain_of(2)
    layers[0].layer.files(rig.root).doubt.write_text('{"format": 1, "kind": "dou')
    upkeep = await take_over(second, rig)
    await upkeep.rebuilder.adopt("old", ["job-0", "job-1"])
    assert "cannot be used" in (await doubted(second, "old"))["job-0"]
    await rig.restart()
    assert list(await doubted(rig, "local")) == ["job-0"], "a start looks as well"


async def test_an_uncommitted_layer_is_never_imported(rig: Rig, second: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    await rig.sealed("job-2", disks[1], [Extent(0, 65536)], parent=layers[1].layer.layer_id)
    await rig.written("job-3", disks[1], [Extent(0, 65536)], parent=layers[1].layer.layer_id)
    upkeep = await take_over(second, rig)

    report = await upkeep.scanner.scan("old")

    assert [each.record.backup_id for each in report.importable] == ["job-0", "job-1"]
    assert {each.kind for each in report.findings} == {"uncommitted"}
    with pytest.raises(PointNotFound):
        await upkeep.rebuilder.adopt("old", ["job-2"])


async def test_a_point_is_not_imported_without_what_it_builds_on(rig: Rig, second: Rig) -> None:
    await rig.chain_of(2)
    upkeep = await take_over(second, rig)
    with pytest.raises(LayerDamaged, match="job-0"):
        await upkeep.rebuilder.adopt("old", ["job-1"])
    with pytest.raises(PointNotFound):
        await second.parts.points.get("job-1")


def _cut_sidecar(rig: Rig, layer: PlacedLayer) -> str:
    path = layer.layer.files(rig.root).sidecar
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def _newer_sidecar(rig: Rig, layer: PlacedLayer) -> str:
    path = layer.layer.files(rig.root).sidecar
    document = json.loads(path.read_text()) | {"format": 2}
    document["digest"] = documents.digest_of(document)
    path.unlink()
    path.write_text(json.dumps(document))
    return path.name


def _removed_image(rig: Rig, layer: PlacedLayer) -> str:
    path = layer.layer.files(rig.root).sealed
    path.unlink()
    return path.name


def _foreign_backing(rig: Rig, layer: PlacedLayer) -> str:
    path = layer.layer.files(rig.root).sealed
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    place = content.index(b"full-")
    content[place : place + 5] = b"/etc/"
    path.write_bytes(content)
    return path.name


def _json_backing(rig: Rig, layer: PlacedLayer) -> str:
    path = layer.layer.files(rig.root).sealed
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    place = content.index(b"full-")
    content[place : place + 5] = b"json:"
    path.write_bytes(content)
    return path.name


@pytest.mark.parametrize("spoil", [_cut_sidecar, _newer_sidecar, _removed_image, _foreign_backing, _json_backing])
async def test_bad_input_is_reported_by_name_and_siblings_are_imported(
    rig: Rig, second: Rig, spoil: Callable[[Rig, PlacedLayer], str]
) -> None:
    layers, disks = await rig.chain_of(3)
    other = await rig.backup("job-9", noise(len(disks[0]), 9))  # a full of its own, newer than the spoiled ones
    name = spoil(rig, layers[1])
    upkeep = await take_over(second, rig)

    report = await upkeep.scanner.scan("old")

    assert [each.record.backup_id for each in report.importable] == ["job-0", "job-9"]
    refused = {each.backup_id: each for each in report.findings if each.kind == "unimportable"}
    assert set(refused) == {"job-1", "job-2"}
    assert any(name in each.path for each in report.findings)
    assert await upkeep.rebuilder.adopt("old", ["job-0", "job-9"]) == ["job-0", "job-9"]
    assert rig.content(layers[0]) == disks[0]
    assert rig.content(other) == noise(len(disks[0]), 9)


async def test_parents_that_lead_in_a_circle_are_refused(rig: Rig, second: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    files = [layer.layer.files(rig.root) for layer in layers]
    # Both increments claim the other as their parent, in sidecars and headers.
    for mine, theirs in ((1, 2), (2, 1)):
        document = json.loads(files[mine].sidecar.read_text())
        document["parent"] = {
            "layer_id": layers[theirs].layer.layer_id,
            "name": files[theirs].sealed.name,
            "digest": document["digest"],
        }
        document["supersedes"] = [layer.layer.digest for layer in layers]
        content, _ = documents.encode(
            SIDECAR_KIND, {key: value for key, value in document.items() if key not in {"format", "kind", "digest"}}
        )
        files[mine].sidecar.unlink()
        files[mine].sidecar.write_bytes(content)
    upkeep = await take_over(second, rig)

    report = await upkeep.scanner.scan("old")

    assert [each.record.backup_id for each in report.importable] == ["job-0"]
    assert all(each.finding for each in report.findings)
    assert {each.backup_id for each in report.findings if each.kind == "unimportable"} == {"job-1", "job-2"}
    assert rig.content(layers[0]) == disks[0]


async def test_a_points_file_of_another_repository_or_vm_is_refused(rig: Rig, second: Rig) -> None:
    await rig.chain_of(1)
    shutil.copytree(rig.root / VM, rig.root / OTHER_VM)
    upkeep = await take_over(second, rig)

    report = await upkeep.scanner.scan("old")

    assert [each.record.vm_uuid for each in report.importable] == [VM]
    assert "unimportable" in {each.kind for each in report.findings if each.path.startswith(OTHER_VM)}


async def test_a_root_that_is_not_this_repositorys_is_not_scanned(rig: Rig) -> None:
    await rig.chain_of(1)
    (rig.root / MARKER_NAME).rename(rig.root / "away")
    with pytest.raises(RepositoryUnusable, match="mounted"):
        await scan(rig)


async def test_a_forgotten_repository_can_be_registered_and_imported_again(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    upkeep = build_upkeep(rig.parts)
    before = tree(rig.root)
    await upkeep.administration.forget("local", forget_points=True)
    assert await rig.parts.registry.all() == []

    record = await rig.parts.registry.create("again", "local", rig.root, RepositoryOptions(reserve_bytes=7))
    adopted = await upkeep.rebuilder.adopt("again", ["job-1", "job-0"])

    assert (record.name, record.options.reserve_bytes) == ("again", 7)
    assert adopted == ["job-0", "job-1"]
    assert tree(rig.root) == before
    assert (await rig.parts.points.latest("again", VM)).point.backup_id == "job-1"
    assert rig.content(layers[1]) == disks[1]
