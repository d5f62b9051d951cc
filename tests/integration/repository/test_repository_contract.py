"""The contract that every adapter of the `Repository` port keeps, whatever it keeps backups in."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, VM, Rig, content, entries_of, noise, open_rig, tree, write_image

from sendense_blockio.extents import Extent
from sendense_blockio.journal import encode_entries
from sendense_repository.creation import NewLayer
from sendense_repository.errors import (
    ForeignLayer,
    InvalidValue,
    LayerInUse,
    LayerNotFound,
    LayerNotSealed,
    LayerSealed,
    RepositoryUnusable,
    StaleAttempt,
)
from sendense_repository.point import NewPoint
from sendense_repository.records import Holder
from sendense_repository.repositories import ADAPTERS, Repositories
from sendense_repository.repository_port import Repository
from sendense_repository.root import MARKER_NAME

JOB = Holder("job-0", 1)


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """A directory on a mount of its own; stands for a network file system's."""
    path.mkdir()
    mounting = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True, check=False)
    if mounting.returncode:
        pytest.skip(f"nothing can be mounted here: {mounting.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture(params=sorted(ADAPTERS))
def repository_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(repository_type: str, tmp_path: Path) -> Iterator[Path]:
    """Storage of the type, empty."""
    path = tmp_path / "second"
    if repository_type == "nfs":
        with mounted(path, "-t", "tmpfs", "-o", "size=64m", "sendense-test") as mount:
            yield mount
    else:
        path.mkdir()
        yield path


@pytest.fixture
async def rig(tmp_path: Path, place: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
async def repository(rig: Rig, repository_type: str, place: Path) -> Repository:
    """A repository of the type, beside the default one."""
    await rig.parts.registry.create("second", repository_type, place)
    return await Repositories(rig.parts).open("second")


def wanted(parent: str = "") -> NewLayer:
    return NewLayer("second", VM, "disk-a", SIZE, parent, "change", 0)


async def backed_up(
    rig: Rig, repository: Repository, job: str, disk: bytes, areas: list[Extent], parent: str = ""
) -> str:
    """A backup of one disk through the port alone; returns the layer's id."""
    holder = Holder(job, 1)
    placed = await repository.create_layer(holder, wanted(parent))
    layer_id = placed.layer.layer_id
    image = await repository.open_layer(holder, layer_id)
    assert (await repository.journal_position(layer_id)).last_sequence == 0
    await repository.set_areas(holder, layer_id, areas)
    assert await repository.remaining_areas(layer_id) == areas
    await asyncio.to_thread(write_image, image.path, disk, areas, [], rig.scratch)
    await repository.append_journal(holder, layer_id, 1, encode_entries(entries_of(disk, areas)))
    assert await repository.remaining_areas(layer_id) == []
    assert (await repository.journal_position(layer_id)).last_sequence == 1
    sealed = await repository.seal_layer(holder, layer_id, "first backup")
    assert sealed.layer.state == "sealed"
    point = NewPoint("second", VM, "web", "ctx", [layer_id], None, "")
    await rig.parts.points.commit(holder, point)
    return layer_id


async def restored(rig: Rig, repository: Repository, layer_id: str) -> bytes:
    placed = await repository.find_layer(layer_id)
    return content(placed.layer.files(placed.repository.path).sealed, rig.scratch)


async def test_what_was_sealed_is_read_again_and_verifies(rig: Rig, repository: Repository) -> None:
    disk = noise(SIZE, 1)
    changed = noise(CLUSTER, 2) + disk[CLUSTER:]
    full = await backed_up(rig, repository, "job-0", disk, [Extent(0, SIZE)])
    increment = await backed_up(rig, repository, "job-1", changed, [Extent(0, CLUSTER)], full)

    assert [await restored(rig, repository, each) for each in (full, increment)] == [disk, changed]
    assert [await repository.verify(each) for each in (full, increment)] == [[], []]
    assert [layer.layer_id for layer in await repository.list_layers(VM)] == [full, increment]
    usage = await repository.usage()
    assert (usage.layers, usage.stored_bytes > SIZE) == (2, True)
    assert 0 < usage.available_bytes <= usage.total_bytes
    assert (await repository.capabilities()).local_files


async def test_an_image_is_written_on_the_layers_below_it(rig: Rig, repository: Repository) -> None:
    full = await backed_up(rig, repository, "job-0", noise(SIZE, 1), [Extent(0, SIZE)])
    placed = await repository.create_layer(Holder("job-1", 1), wanted(full))

    image = await repository.open_layer(Holder("job-1", 1), placed.layer.layer_id)

    assert image.path.exists()
    assert [path.name for path in image.chain] == [(await repository.find_layer(full)).layer.name]


async def test_a_layer_is_made_once_and_belongs_to_its_job(repository: Repository) -> None:
    placed = await repository.create_layer(JOB, wanted())
    again = await repository.create_layer(JOB, wanted())
    layer_id = placed.layer.layer_id

    assert again.layer.layer_id == layer_id
    with pytest.raises(ForeignLayer):
        await repository.open_layer(Holder("job-1", 1), layer_id)
    with pytest.raises(LayerNotSealed):
        await repository.verify(layer_id)
    await repository.open_layer(Holder("job-0", 2), layer_id)
    with pytest.raises(StaleAttempt):
        await repository.open_layer(JOB, layer_id)


async def test_a_discarded_layer_leaves_nothing(rig: Rig, repository: Repository) -> None:
    before = tree(repository.record.path)
    placed = await repository.create_layer(JOB, wanted())
    layer_id = placed.layer.layer_id
    await repository.set_areas(JOB, layer_id, [Extent(0, CLUSTER)])

    await repository.discard_layer(JOB, layer_id)

    after = tree(repository.record.path)
    assert {name: digest for name, digest in after.items() if not name.endswith("disks.json")} == before
    with pytest.raises(LayerNotFound):
        await repository.find_layer(layer_id)


async def test_a_sealed_layer_takes_nothing_more(rig: Rig, repository: Repository) -> None:
    layer_id = await backed_up(rig, repository, "job-0", noise(SIZE, 1), [Extent(0, SIZE)])

    with pytest.raises(LayerSealed):
        await repository.open_layer(JOB, layer_id)
    with pytest.raises(LayerInUse):
        await repository.discard_layer(JOB, layer_id)


async def test_deleting_and_consolidating_keep_what_is_left(rig: Rig, repository: Repository) -> None:
    disks = [noise(SIZE, 1)]
    layers = [await backed_up(rig, repository, "job-0", disks[0], [Extent(0, SIZE)])]
    for number in (1, 2, 3):
        area = Extent(number * CLUSTER, 2 * CLUSTER)
        disk = disks[-1][: area.offset] + noise(area.length, number) + disks[-1][area.end :]
        layers.append(await backed_up(rig, repository, f"job-{number}", disk, [area], layers[-1]))
        disks.append(disk)

    plan = await repository.plan_deletion(["job-1"], cascade=False)
    done = await repository.delete(Holder("delete-1", 1), ["job-1"], cascade=False)
    assert plan.backup_ids == done.backup_ids == ["job-1"]
    assert [await restored(rig, repository, layers[each]) for each in (0, 2, 3)] == [disks[each] for each in (0, 2, 3)]

    operation = await repository.consolidate(Holder("merge-1", 1), "job-0", "job-3")
    async with asyncio.timeout(120):
        await operation.ended.wait()
    assert operation.state == "done"
    assert await restored(rig, repository, layers[3]) == disks[3]
    assert await repository.verify(layers[3]) == []
    assert [layer.layer_id for layer in await repository.list_layers(VM)] == [layers[3]]


async def test_a_layer_of_another_repository_is_none_of_its_own(rig: Rig, repository: Repository) -> None:
    elsewhere = await rig.layer("job-7")
    for refused in (repository.find_layer(elsewhere.layer.layer_id), repository.verify(elsewhere.layer.layer_id)):
        with pytest.raises(LayerNotFound):
            await refused


async def test_storage_that_is_not_its_own_is_never_touched(rig: Rig, repository: Repository) -> None:
    layer_id = await backed_up(rig, repository, "job-0", noise(SIZE, 1), [Extent(0, SIZE)])
    root = repository.record.path
    (root / MARKER_NAME).rename(root / "marker-elsewhere")
    before = tree(root)

    with pytest.raises(RepositoryUnusable):
        await repository.create_layer(Holder("job-1", 1), wanted(layer_id))
    with pytest.raises(RepositoryUnusable):
        await repository.delete(Holder("delete-1", 1), ["job-0"], cascade=True)
    with pytest.raises(RepositoryUnusable):
        await repository.verify(layer_id)

    assert tree(root) == before


async def test_several_repositories_keep_their_points_apart(rig: Rig, repository: Repository) -> None:
    disk = noise(SIZE, 1)
    full = await backed_up(rig, repository, "job-0", disk, [Extent(0, SIZE)])
    other = await rig.backup("job-1", disk)

    await repository.delete(Holder("delete-1", 1), ["job-0"], cascade=False)

    assert rig.content(other) == disk
    with pytest.raises(LayerNotFound):
        await repository.find_layer(full)
    assert [each.name for each in await rig.parts.registry.all()] == ["local", "second"]


async def test_an_unknown_type_is_refused_by_name(rig: Rig, tmp_path: Path) -> None:
    place = tmp_path / "third"
    place.mkdir()
    with pytest.raises(InvalidValue, match="tape"):
        await rig.parts.registry.create("third", "tape", place)
    assert list(place.iterdir()) == []
