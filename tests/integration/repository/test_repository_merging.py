"""Deleting merges: every kept point reads as before, keeps its identity, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, CONTEXT, MIB, SIZE, VM, Rig, content, noise, open_rig, opened_by_qemu, qemu, tree

from sendense_blockio.engine import CopyProgress
from sendense_blockio.extents import Extent
from sendense_blockio.journal import read_journal
from sendense_qemu import img
from sendense_repository.errors import LayerDamaged, NoRoom, PointLeased, PointNotFound
from sendense_repository.layout import point_file
from sendense_repository.manifest import compare_allocation
from sendense_repository.merge_copy import commit_layers
from sendense_repository.qcow2_metadata import metadata_digest
from sendense_repository.records import Holder, PlacedLayer
from sendense_repository.sidecar import read_sidecar

DELETE = Holder("delete-1", 1)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


async def require_sound(rig: Rig, placed: PlacedLayer) -> None:
    """A layer's image, journal, sidecar and row say the same."""
    layer = await rig.parts.catalogue.layers.find(placed.layer.layer_id)
    assert layer is not None
    files = layer.files(rig.root)
    said = read_sidecar(files.sidecar)
    journal = read_journal(files.journal)
    assert said["digest"] == layer.digest
    assert said["metadata_digest"] == layer.metadata_digest == metadata_digest(files.sealed)
    assert said["journal"]["digest"] == layer.journal_digest == journal.checksum.hex()
    assert said["areas"]["digest"] == layer.areas_digest == journal.header.areas_digest
    assert (said["parent"] or {}).get("layer_id") == layer.parent_layer_id
    assert (said["backup_type"], said["change_id"]) == (layer.backup_type, f"change of {layer.backup_id}")
    assert "swap" not in said
    found = compare_allocation(
        journal.entries,
        await img.map_depths(files.sealed, "qcow2"),
        cluster_size=CLUSTER,
        virtual_size=SIZE,
        has_parent=layer.parent_layer_id is not None,
    )
    assert found.finding == ""
    point = json.loads(point_file(rig.root, VM, layer.backup_id).read_text())
    assert point["layers"][0]["digest"] in [layer.digest, *said.get("supersedes", [])]
    assert files.sealed.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize(
    "gone", [["job-0"], ["job-1"], ["job-2"], ["job-0", "job-1"], ["job-1", "job-2"], ["job-0", "job-2"], ["job-3"]]
)
async def test_deleting_points_leaves_every_other_point_as_it_was(rig: Rig, gone: list[str]) -> None:
    layers, disks = await rig.chain_of(5)
    kept = [number for number in range(5) if f"job-{number}" not in gone]

    told = await rig.parts.deleter.plan(gone, cascade=False)
    done = await rig.parts.deleter.delete(DELETE, gone, cascade=False)

    assert sorted(done.backup_ids) == sorted(told.backup_ids) == sorted(gone)
    for number in kept:
        assert rig.content(layers[number]) == disks[number]
        await require_sound(rig, layers[number])
    for backup_id in gone:
        with pytest.raises(PointNotFound):
            await rig.parts.points.get(backup_id)
    on_storage = {name for name in tree(rig.root) if name.endswith(".qcow2")}
    assert len(on_storage) == len(kept)
    assert not [name for name in tree(rig.root) if "merged" in name or ".new-" in name]
    (chain,) = await rig.parts.chains.of_context(CONTEXT)
    assert [each.backup_id for each in chain.layers] == [f"job-{number}" for number in kept]
    assert chain.layers[0].backup_type == "full"
    qemu("qemu-img", "check", "-f", "qcow2", rig.image(layers[kept[-1]]))


async def test_a_backup_goes_on_where_a_merged_chain_ends(rig: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    await rig.parts.deleter.delete(DELETE, ["job-0", "job-1"], cascade=False)

    disk = noise(CLUSTER, 77) + disks[2][CLUSTER:]
    more = await rig.backup("job-3", disk, [Extent(0, CLUSTER)], layers[2].layer.layer_id)
    await rig.parts.deleter.delete(DELETE, ["job-2"], cascade=False)

    assert rig.content(more) == disk
    await require_sound(rig, more)


async def test_a_point_can_be_merged_into_again_and_again(rig: Rig) -> None:
    layers, disks = await rig.chain_of(4)
    for number in range(3):
        await rig.parts.deleter.delete(DELETE, [f"job-{number}"], cascade=False)
        for kept in range(number + 1, 4):
            assert rig.content(layers[kept]) == disks[kept]
            await require_sound(rig, layers[kept])
    assert len(read_sidecar(layers[3].layer.files(rig.root).sidecar)["supersedes"]) == 1


async def test_extents_that_are_cut_by_later_ones_and_no_whole_clusters_keep_their_content(rig: Rig) -> None:
    disk = bytearray(noise(SIZE, 1))
    layers = [await rig.backup("job-0", bytes(disk), [Extent(0, SIZE)])]
    disks = [bytes(disk)]
    for number, areas in enumerate(
        (
            [Extent(1000 * 512, 9 * CLUSTER), Extent(3 * MIB + 512, 512)],
            [Extent(1000 * 512 + CLUSTER, 1024), Extent(2 * MIB, CLUSTER), Extent(SIZE - 512, 512)],
            [Extent(1000 * 512 + 2 * CLUSTER + 512, 3 * CLUSTER)],
        ),
        start=1,
    ):
        for area in areas:
            disk[area.offset : area.end] = bytes(area.length) if area.offset == 2 * MIB else noise(area.length, number)
        layers.append(await rig.backup(f"job-{number}", bytes(disk), areas, layers[-1].layer.layer_id))
        disks.append(bytes(disk))

    await rig.parts.deleter.delete(DELETE, ["job-1"], cascade=False)
    assert [rig.content(layers[number]) for number in (0, 2, 3)] == [disks[number] for number in (0, 2, 3)]
    await rig.parts.deleter.delete(DELETE, ["job-0", "job-2"], cascade=False)

    assert rig.content(layers[3]) == disks[3]
    await require_sound(rig, layers[3])


async def test_disks_of_a_point_are_merged_each_in_its_own_chain(rig: Rig) -> None:
    disk = noise(SIZE, 1)
    first = [await rig.sealed("job-0", disk, name="a"), await rig.sealed("job-0", disk, name="b")]
    await rig.commit("job-0", *first)
    changed = noise(CLUSTER, 5) + disk[CLUSTER:]
    # Disk a gets a new full, disk b an increment.
    second = [
        await rig.sealed("job-1", disk, name="a"),
        await rig.sealed("job-1", changed, [Extent(0, CLUSTER)], name="b", parent=first[1].layer.layer_id),
    ]
    await rig.commit("job-1", *second)

    plan = await rig.parts.deleter.plan(["job-0"], cascade=False)
    await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)

    assert [(merge.child.layer_id, merge.is_full) for merge in plan.merges] == [(second[1].layer.layer_id, True)]
    assert [rig.content(each) for each in second] == [disk, changed]


async def test_the_plan_says_what_happens_and_what_it_takes(rig: Rig) -> None:
    layers, _ = await rig.chain_of(4)
    before = tree(rig.root)

    plan = await rig.parts.deleter.plan(["job-1", "job-2"], cascade=False)
    assert tree(rig.root) == before
    done = await rig.parts.deleter.delete(DELETE, ["job-1", "job-2"], cascade=False)

    (merge,) = plan.merges
    assert [each.layer_id for each in merge.merged] == [layers[number].layer.layer_id for number in (3, 2, 1)]
    assert plan.holders == []
    assert plan.needed_bytes > plan.estimates[0].copied_bytes > 0
    assert abs(plan.freed_bytes - done.freed_bytes) <= 256 << 10  # tables and small files


async def test_a_deleted_point_is_deleted_once(rig: Rig) -> None:
    await rig.chain_of(2)
    await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)
    before = tree(rig.root)

    again = await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)

    assert (again.backup_ids, again.freed_bytes) == ((), 0)
    assert tree(rig.root) == before
    with pytest.raises(PointNotFound):
        await rig.parts.deleter.delete(DELETE, ["job-9"], cascade=False)


async def test_a_damaged_layer_is_never_given_a_new_digest(rig: Rig) -> None:
    layers, _ = await rig.chain_of(3)
    image = rig.image(layers[1])
    data = next(
        each
        for each in await img.map_depths(image, "qcow2")
        if each.depth == 0 and each.data and each.offset is not None
    )
    image.chmod(0o644)
    with image.open("r+b") as stream:
        stream.seek(data.offset or 0)
        byte = stream.read(1)
        stream.seek(data.offset or 0)
        stream.write(bytes([byte[0] ^ 1]))
    image.chmod(0o444)
    before = tree(rig.root)

    with pytest.raises(LayerDamaged) as refused:
        await rig.parts.deleter.delete(DELETE, ["job-1"], cascade=False)

    assert refused.value.layer_id == layers[1].layer.layer_id
    assert str(data.start) in refused.value.finding
    assert tree(rig.root) == before
    assert (await rig.parts.points.get("job-1")).point.state == "committed"


async def test_a_merge_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.chain_of(3)
        before = tree(rig.root)
        await rig.start(reserve=1 << 60)
        with pytest.raises(NoRoom):
            await rig.parts.deleter.delete(DELETE, ["job-1"], cascade=False)
        assert tree(rig.root) == before


async def test_a_reader_of_a_later_point_keeps_the_points_below_it(rig: Rig) -> None:
    await rig.chain_of(3)
    before = tree(rig.root)
    await rig.parts.points.lease("job-2", "mount-7", 600)

    with pytest.raises(PointLeased) as refused:
        await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)

    assert refused.value.holders == ("mount-7",)
    assert tree(rig.root) == before


async def test_an_open_image_keeps_its_point_though_the_lease_ran_out(rig: Rig, short_tmp: Path) -> None:
    layers, disks = await rig.chain_of(2)
    reading = opened_by_qemu(rig.image(layers[1]), short_tmp / "n", "-r")
    with reading, pytest.raises(PointLeased, match="qemu process"):
        await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)
    await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)
    assert rig.content(layers[1]) == disks[1]


async def test_a_backup_that_runs_on_the_chain_is_named_and_waited_for(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    running = await rig.written("job-2", disks[1], [Extent(0, CLUSTER)], parent=layers[1].layer.layer_id)
    with pytest.raises(PointLeased) as refused:
        await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)
    assert refused.value.holders == ("job-2",)

    waiting = asyncio.create_task(rig.parts.deleter.delete(DELETE, ["job-1"], cascade=False, wait_seconds=120))
    sealed = await rig.parts.sealer.seal(Holder("job-2", 1), running.layer.layer_id, "changed areas")
    await rig.commit("job-2", sealed)
    await waiting

    # The point was the newest one when its deletion was asked for: now it is merged into what was built on it.
    assert rig.content(sealed) == disks[1]
    await require_sound(rig, sealed)


async def test_what_a_crash_left_half_written_is_removed_at_the_start_and_nothing_else(rig: Rig) -> None:
    layers, _ = await rig.chain_of(2)
    directory = rig.image(layers[0]).parent
    strangers = [
        rig.root / "notes.txt",
        rig.root / "lost+found",
        directory / "copy.qcow2",
        rig.root / "other" / ".new-1",
    ]
    (rig.root / "other").mkdir()
    for stranger in strangers:
        stranger.write_text("not ours")
    before = tree(rig.root)
    (rig.root / ".new-probe").mkdir()
    (rig.root / ".new-probe" / "first").write_text("x")
    (directory / ".new-1234").write_text("x")
    (point_file(rig.root, VM, "job-0").parent / ".new-1234").write_text("x")
    rig.image(layers[1]).with_name(f"{layers[1].layer.name}.merged").write_text("half")

    await rig.restart()

    assert tree(rig.root) == before
    assert not (rig.root / ".new-probe").exists()


class Looking(CopyProgress):
    """Counters that open images with qemu whenever they move, which they do while the merge goes on."""

    def __init__(self, images: list[Path]) -> None:
        super().__init__()
        self.images = images
        self.looks = 0

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "bytes_done" and value and hasattr(self, "looks"):
            for image in self.images:
                qemu("qemu-io", "-r", "-f", "qcow2", "-c", "read -q 0 512", image)
            self.looks += 1


async def test_every_layer_can_be_opened_while_it_is_merged(rig: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    images = [rig.image(layer) for layer in layers]
    target = images[0].with_name("target.qcow2")
    target.write_bytes(images[0].read_bytes())
    progress = Looking(images)

    await commit_layers(
        [images[2], images[1]], [target], work_dir=rig.work_dir, progress=progress, cancel=threading.Event()
    )

    assert progress.looks > 0
    assert content(target, rig.scratch) == disks[2]
