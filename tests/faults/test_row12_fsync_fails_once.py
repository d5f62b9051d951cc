"""Row 12: an fsync fails once and then succeeds: what was to be made durable is lost, a retry is no success."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, Rig, noise, open_rig, tree

from sendense_blockio.extents import Extent
from sendense_repository import durable
from sendense_repository.errors import LayerPoisoned
from sendense_repository.records import Holder

pytestmark = pytest.mark.faults


class FailsOnce:
    """Makes files durable, but the n-th time."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, path: Path) -> None:
        self._left -= 1
        if not self._left:
            raise OSError(errno.EIO, "Input/output error", str(path))
        durable.sync_file(path)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("at", [1, 2])
async def test_a_layer_whose_fsync_failed_once_is_never_sealed(rig: Rig, at: int) -> None:
    disk = noise(SIZE, 1)
    full = await rig.backup("job-0", disk)
    before = tree(rig.root)
    await rig.restart(sync=FailsOnce(at))
    placed = await rig.written("job-1", disk, [Extent(0, CLUSTER)], parent=full.layer.layer_id)
    layer_id = placed.layer.layer_id

    for _ in range(2):
        with pytest.raises(LayerPoisoned):
            await rig.parts.sealer.seal(Holder("job-1", 1), layer_id, "")
    await rig.restart()
    with pytest.raises(LayerPoisoned):
        await rig.parts.sealer.seal(Holder("job-1", 1), layer_id, "")

    await rig.parts.layers.discard(Holder("job-1", 1), layer_id)
    assert tree(rig.root) == before


@pytest.mark.parametrize("at", [1, 2])
async def test_a_merge_whose_fsync_failed_once_is_thrown_away_whole(rig: Rig, at: int) -> None:
    layers, disks = await rig.chain_of(3)
    before = tree(rig.root)
    await rig.restart(sync=FailsOnce(at))

    with pytest.raises(OSError, match="Input/output error"):
        await rig.parts.deleter.delete(Holder("delete-1", 1), ["job-1"], cascade=False)
    assert tree(rig.root) == before
    assert (await rig.parts.points.get("job-1")).point.state == "committed"

    # What is made anew is another file, written and synced anew.
    await rig.parts.deleter.delete(Holder("delete-1", 1), ["job-1"], cascade=False)
    assert [rig.content(layers[each]) for each in (0, 2)] == [disks[0], disks[2]]
