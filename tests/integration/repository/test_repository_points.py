"""Restore points: whole or not at all, in order, deletable without harm, readable without Sendense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from repository_rig import CLUSTER, CONTEXT, SIZE, VM, Rig, noise, open_rig, opened_by_qemu, qemu, tree

from sendense_blockio.extents import Extent
from sendense_repository.errors import (
    ForeignLayer,
    InvalidValue,
    LayerDamaged,
    LayerNotSealed,
    PointConflict,
    PointLeased,
    PointNotFound,
    StaleParent,
)
from sendense_repository.layout import point_file
from sendense_repository.point import NewPoint
from sendense_repository.records import Holder

DELETE = Holder("delete-1", 1)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


async def test_plain_qemu_img_restores_every_point_from_its_points_file(rig: Rig) -> None:
    _, disks = await rig.chain_of(3)

    for number, disk in enumerate(disks):
        point = json.loads(point_file(rig.root, VM, f"job-{number}").read_text())
        (layer,) = point["layers"]
        target = rig.scratch / "out.raw"
        qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", rig.root / VM / layer["path"], target)
        assert target.read_bytes() == disk
        assert point["sequence"] == number + 1
        assert point["previous_backup_id"] == (f"job-{number - 1}" if number else None)
        assert point["hardware"] == {"cpus": 2}
        assert (point["vm_name"], point["vm_context_id"]) == ("web", CONTEXT)


async def test_several_disks_make_one_point(rig: Rig) -> None:
    first, second = noise(SIZE, 1), noise(SIZE, 2)
    layers = [await rig.sealed("job-0", first, name="a"), await rig.sealed("job-0", second, name="b")]

    point = await rig.commit("job-0", *layers)
    again = await rig.commit("job-0", *layers)

    assert [each.disk_id for each in point.layers] == [0, 1]
    assert again.point == point.point
    with pytest.raises(PointConflict):
        await rig.commit("job-0", layers[0])


async def test_a_point_needs_own_sealed_layers(rig: Rig) -> None:
    disk = noise(SIZE, 1)
    partial = await rig.written("job-0", disk)
    with pytest.raises(LayerNotSealed):
        await rig.commit("job-0", partial)
    with pytest.raises(ForeignLayer):
        await rig.commit("job-1", partial)
    with pytest.raises(PointNotFound):
        await rig.parts.points.latest("local", VM)


async def test_an_increment_whose_parent_was_overtaken_is_not_committed(rig: Rig) -> None:
    disk = noise(SIZE, 1)
    full = await rig.backup("job-0", disk)
    slow = await rig.sealed("slow", disk, [Extent(0, CLUSTER)], parent=full.layer.layer_id)
    await rig.backup("fast", disk, [Extent(0, CLUSTER)], full.layer.layer_id)
    before = tree(rig.root)

    with pytest.raises(StaleParent):
        await rig.commit("slow", slow)

    assert tree(rig.root) == before
    assert (await rig.parts.points.latest("local", VM)).point.backup_id == "fast"


async def test_a_layer_that_changed_after_its_seal_is_not_committed(rig: Rig) -> None:
    layer = await rig.sealed("job-0", noise(SIZE, 1))
    sidecar = layer.layer.files(rig.root).sidecar
    sidecar.chmod(0o644)
    sidecar.write_text(sidecar.read_text().replace("first backup", "other reason"))

    with pytest.raises(LayerDamaged, match="digest"):
        await rig.commit("job-0", layer)


async def test_the_order_of_points_is_by_sequence_and_survives_deletion(rig: Rig) -> None:
    disk = noise(SIZE, 1)
    await rig.backup("job-0", disk)
    await rig.backup("job-1", disk)
    await rig.parts.deleter.delete(DELETE, ["job-1"], cascade=False)

    await rig.backup("job-2", disk)

    assert (await rig.parts.points.get("job-2")).point.sequence == 3
    assert (await rig.parts.points.get("job-2")).point.previous_backup_id == "job-0"


async def test_deleting_the_newest_point_gives_its_parent_back_to_the_next_increment(rig: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    others = {name: digest for name, digest in tree(rig.root).items() if "job-2" not in name}
    gone = {str(path.relative_to(rig.root)) for path in layers[2].layer.files(rig.root).all}

    told = await rig.parts.deleter.plan(["job-2"], cascade=False)
    assert (await rig.parts.points.get("job-2")).point.backup_id == "job-2"
    done = await rig.parts.deleter.delete(DELETE, ["job-2"], cascade=False)
    repeated = await rig.parts.deleter.delete(DELETE, ["job-2"], cascade=False)

    assert told.backup_ids == done.backup_ids == ["job-2"]
    assert 0 < told.freed_bytes <= done.freed_bytes
    assert list(repeated.backup_ids) == []
    assert tree(rig.root) == {name: digest for name, digest in others.items() if name not in gone}
    assert [rig.content(layer) for layer in layers[:2]] == disks[:2]
    await rig.backup("job-3", disks[2], [Extent(0, SIZE)], layers[1].layer.layer_id)
    assert (await rig.parts.points.latest("local", VM)).point.previous_backup_id == "job-1"


async def test_cascade_deletes_a_point_with_those_that_build_on_it(rig: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    before = tree(rig.root)
    told = await rig.parts.deleter.plan(["job-1"], cascade=True)
    assert tree(rig.root) == before

    done = await rig.parts.deleter.delete(DELETE, ["job-1"], cascade=True)

    assert told.backup_ids == done.backup_ids == ["job-2", "job-1"]
    assert rig.content(layers[0]) == disks[0]


async def test_a_point_of_several_disks_takes_with_it_whatever_builds_on_any_of_them(rig: Rig) -> None:
    disk = noise(SIZE, 1)
    first = [await rig.sealed("job-0", disk, name="a"), await rig.sealed("job-0", disk, name="b")]
    await rig.commit("job-0", *first)
    # Disk a gets a new full, disk b an increment: the point depends on job-0 through b only.
    second = [
        await rig.sealed("job-1", disk, name="a"),
        await rig.sealed("job-1", disk, [Extent(0, CLUSTER)], name="b", parent=first[1].layer.layer_id),
    ]
    await rig.commit("job-1", *second)
    third = await rig.sealed("job-2", disk, [Extent(0, CLUSTER)], name="a", parent=second[0].layer.layer_id)
    await rig.commit("job-2", third)

    told = await rig.parts.deleter.plan(["job-0"], cascade=True)

    assert told.backup_ids == ["job-2", "job-1", "job-0"]


async def test_a_leased_point_and_what_is_below_it_stay(rig: Rig) -> None:
    await rig.chain_of(2)
    before = tree(rig.root)
    lease = await rig.parts.points.lease("job-1", "mount-7", 60)
    assert (lease.expires_at - datetime.now(UTC)).total_seconds() == pytest.approx(60, abs=10)

    for backup_id, cascade in (("job-1", True), ("job-0", True), ("job-0", False)):
        with pytest.raises(PointLeased) as refused:
            await rig.parts.deleter.delete(DELETE, [backup_id], cascade=cascade)
        assert refused.value.holders == ("mount-7",)
    assert tree(rig.root) == before

    await rig.parts.points.release("job-1", "mount-7")
    await rig.parts.points.release("job-1", "mount-7")
    await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=True)
    with pytest.raises(PointNotFound):
        await rig.parts.points.lease("job-1", "mount-8", 60)


async def test_a_lease_runs_out_but_an_open_image_still_keeps_the_point(rig: Rig, short_tmp: Path) -> None:
    full = await rig.backup("job-0", noise(SIZE, 1))
    await rig.parts.points.lease("job-0", "mount-7", 1)
    with opened_by_qemu(rig.image(full), short_tmp / "n", "-r"):
        await asyncio.sleep(1.1)
        with pytest.raises(PointLeased, match="qemu process"):
            await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)
    await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=False)


async def test_a_point_that_a_running_backup_builds_on_is_not_deleted(rig: Rig) -> None:
    full = await rig.backup("job-0", noise(SIZE, 1))
    running = await rig.layer("job-1", parent=full.layer.layer_id)

    with pytest.raises(PointLeased) as refused:
        await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=True)

    assert refused.value.holders == ("job-1",)
    await rig.parts.layers.discard(Holder("job-1", 1), running.layer.layer_id)
    await rig.parts.deleter.delete(DELETE, ["job-0"], cascade=True)


async def test_sealed_bytes_never_change_again(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    before = tree(rig.root)

    await rig.backup("job-2", disks[1], [Extent(0, CLUSTER)], layers[1].layer.layer_id)
    await rig.backup("job-3", disks[1])
    await rig.parts.deleter.delete(DELETE, ["job-2"], cascade=True)
    await rig.restart()

    after = tree(rig.root)
    assert {name: after[name] for name in before} == before


async def test_chains_show_history_sizes_and_which_one_goes_on(rig: Rig) -> None:
    layers, disks = await rig.chain_of(3)
    new_full = await rig.backup("job-3", disks[-1])

    current, old = await rig.parts.chains.of_context(CONTEXT)

    assert (current.current, [each.backup_id for each in current.layers]) == (True, ["job-3"])
    assert (old.current, [each.backup_id for each in old.layers]) == (False, ["job-0", "job-1", "job-2"])
    assert old.total_size_bytes == sum(rig.image(layer).stat().st_blocks * 512 for layer in layers)
    assert current.chain_id == new_full.layer.chain_id
    assert await rig.parts.chains.of_context("ctx-unknown") == []
    async with rig.database.read() as connection:
        rows = list(await connection.exec_driver_sql("SELECT * FROM backup_chains"))
    assert [(row.id, row.full_backup_id, row.total_backups) for row in rows] == [(current.chain_id, "job-3", 1)]


async def test_what_storage_holds_and_nobody_knows_is_left_alone(rig: Rig) -> None:
    await rig.backup("job-0", noise(SIZE, 1))
    torn = point_file(rig.root, VM, "job-7")
    torn.write_text('{"format": 1, "kind": "poi')
    stranger = json.loads(point_file(rig.root, VM, "job-0").read_text()) | {"backup_id": "job-8"}
    point_file(rig.root, VM, "job-8").write_text(json.dumps(stranger))
    before = tree(rig.root)

    await rig.restart()

    assert tree(rig.root) == before
    assert (await rig.parts.points.latest("local", VM)).point.backup_id == "job-0"


@pytest.mark.parametrize("backup_id", ["../evil", "a/b", "", ".hidden", "x" * 65])
async def test_a_backup_id_is_never_a_path(rig: Rig, backup_id: str) -> None:
    with pytest.raises(InvalidValue):
        await rig.layer(backup_id)
    wanted = NewPoint("local", VM, "web", CONTEXT, ["x"], None, "")
    with pytest.raises(InvalidValue):
        await rig.parts.points.commit(Holder(backup_id, 1), wanted)
