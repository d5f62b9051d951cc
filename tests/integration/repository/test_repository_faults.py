"""A process may stop after any step of seal, commit and delete: doing it again finishes, and nobody else is harmed.

Sealing again, and what a start finishes: `test_repository_killed_early.py`, where the process really dies.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, VM, Killed, Rig, content, entries_of, noise, open_rig, tree

from sendense_blockio.extents import Extent
from sendense_blockio.journal import encode_entries
from sendense_repository.errors import LayerInUse, LayerPoisoned, NoRoom, PointNotFound
from sendense_repository.layout import LayerFiles, point_file
from sendense_repository.records import Holder
from sendense_repository.steps import COMMIT_STEPS, DELETE_STEPS, SEAL_STEPS

pytestmark = pytest.mark.faults


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 8 MiB, where the rig has its repository."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    root = tmp_path / "backups"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "sendense-test", str(root)], check=True)
    yield root
    subprocess.run(["umount", str(root)], check=True)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


def leftovers(root: Path) -> list[str]:
    return [name for name in tree(root) if name.endswith((".partial", ".areas")) or ".new-" in name]


@pytest.mark.parametrize("step", SEAL_STEPS)
async def test_a_half_sealed_layer_can_be_discarded_without_trace(rig: Rig, step: str) -> None:
    full = await rig.backup("job-0", noise(SIZE, 1))
    before = tree(rig.root)
    placed = await rig.written("job-1", noise(SIZE, 2), [Extent(0, CLUSTER)], parent=full.layer.layer_id)
    rig.kill_at = step
    with pytest.raises(Killed):
        await rig.parts.sealer.seal(Holder("job-1", 1), placed.layer.layer_id, "")
    await rig.restart()

    await rig.parts.layers.discard(Holder("job-1", 1), placed.layer.layer_id)

    assert tree(rig.root) == before


async def test_death_between_the_two_halves_of_the_rename_is_finished(rig: Rig) -> None:
    placed = await rig.written("job", noise(SIZE, 1))
    rig.kill_at = "read-only"
    with pytest.raises(Killed):
        await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")
    await rig.restart()
    files = placed.layer.files(rig.root)
    files.sealed.hardlink_to(files.partial)

    sealed = await rig.parts.sealer.seal(Holder("job", 1), placed.layer.layer_id, "")

    assert not files.partial.exists()
    assert content(files.sealed, rig.scratch) == noise(SIZE, 1)
    assert sealed.layer.state == "sealed"


@pytest.mark.parametrize("step", COMMIT_STEPS)
@pytest.mark.parametrize("how", ["again", "by the start", "by the next backup"])
async def test_a_commit_is_whole_after_death_at_any_step(rig: Rig, step: str, how: str) -> None:
    disk = noise(SIZE, 1)
    layer = await rig.sealed("job-0", disk)
    rig.kill_at = step
    with pytest.raises(Killed):
        await rig.commit("job-0", layer)
    if how == "by the next backup":
        rig.kill_at = ""
    else:
        await rig.restart()
    if how == "again":
        await rig.commit("job-0", layer)
    if how == "by the next backup":
        await rig.layer("job-1", parent=layer.layer.layer_id)

    point = await rig.parts.points.latest("local", VM)

    assert (point.point.backup_id, point.point.sequence) == ("job-0", 1)
    assert [each.layer_id for each in point.layers] == [layer.layer.layer_id]
    assert len(await rig.parts.chains.of_context(point.point.vm_context_id)) == 1
    with pytest.raises(LayerInUse):
        await rig.parts.layers.discard(Holder("job-0", 1), layer.layer.layer_id)


async def test_death_before_the_points_file_leaves_no_point(rig: Rig) -> None:
    layer = await rig.sealed("job-0", noise(SIZE, 1))
    await rig.restart()

    with pytest.raises(PointNotFound):
        await rig.parts.points.get("job-0")
    await rig.parts.layers.discard(Holder("job-0", 1), layer.layer.layer_id)
    assert not any(name.endswith(".qcow2") for name in tree(rig.root))


@pytest.mark.parametrize("step", DELETE_STEPS)
async def test_a_delete_that_stopped_at_any_step_is_finished_by_the_next_try(rig: Rig, step: str) -> None:
    layers, disks = await rig.chain_of(3)
    rig.kill_at = step
    with pytest.raises(Killed):
        await rig.parts.deleter.delete(Holder("delete-1", 1), ["job-1"], cascade=True)
    rig.kill_at = ""
    await rig.parts.deleter.delete(Holder("delete-1", 2), ["job-1"], cascade=True)

    for gone in ("job-1", "job-2"):
        with pytest.raises(PointNotFound):
            await rig.parts.points.get(gone)
        assert not point_file(rig.root, VM, gone).exists()
    for placed in layers[1:]:
        files: LayerFiles = placed.layer.files(rig.root)
        assert not any(path.exists() for path in files.all)
    assert (await rig.parts.points.latest("local", VM)).point.backup_id == "job-0"
    assert rig.content(layers[0]) == disks[0]
    (chain,) = await rig.parts.chains.of_context("ctx-web-20261123-120000")
    assert (chain.current, [each.backup_id for each in chain.layers]) == (True, ["job-0"])
    await rig.backup("job-3", disks[1], [Extent(0, SIZE)], layers[0].layer.layer_id)


@pytest.mark.parametrize("step", DELETE_STEPS)
async def test_a_half_deleted_point_is_never_seen_as_whole(rig: Rig, step: str) -> None:
    await rig.backup("job-0", noise(SIZE, 1))
    rig.kill_at = step
    with pytest.raises(Killed):
        await rig.parts.deleter.delete(Holder("delete-1", 1), ["job-0"], cascade=False)

    with pytest.raises(PointNotFound):
        await rig.parts.points.get("job-0")
    with pytest.raises(PointNotFound):
        await rig.parts.points.latest("local", VM)
    with pytest.raises(PointNotFound):
        await rig.parts.points.lease("job-0", "mount-1", 60)
    await rig.restart()
    assert not any(name.endswith((".qcow2", "job-0.json")) for name in tree(rig.root))


def fill(root: Path) -> Path:
    """Takes all room that is left."""
    ballast = root / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(8 << 20))
    assert os.statvfs(root).f_bavail == 0
    return ballast


async def test_a_full_file_system_costs_the_running_layer_and_nothing_else(small_root: Path, tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        disk = noise(SIZE, 1)
        full = await rig.backup("job-0", disk)
        before = tree(rig.root)
        placed = await rig.layer("job-1", parent=full.layer.layer_id)
        layer_id = placed.layer.layer_id
        areas = [Extent(0, SIZE // 2 // CLUSTER * CLUSTER)]
        await rig.parts.layers.set_areas(Holder("job-1", 1), layer_id, areas)
        ballast = fill(small_root)

        batch = encode_entries(entries_of(disk, areas) * 8)
        with pytest.raises(NoRoom) as refused:
            await rig.parts.layers.append(Holder("job-1", 1), layer_id, 1, batch)
        with pytest.raises(NoRoom):
            await rig.layer("job-2")
        ballast.unlink()
        with pytest.raises(LayerPoisoned):
            await rig.parts.layers.append(Holder("job-1", 1), layer_id, 1, batch)
        await rig.parts.layers.discard(Holder("job-1", 1), layer_id)
        for layer in await rig.parts.catalogue.layers.of_job(full.layer.repository_id, "job-2"):
            await rig.parts.layers.discard(Holder("job-2", 1), layer.layer_id)

        assert refused.value.free_bytes == 0
        assert tree(rig.root) == before
        assert rig.content(full) == disk
