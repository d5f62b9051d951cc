"""Row 16: a missing parent, a wrong one, a cycle: refused by name, before qemu opens anything; siblings go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, Rig, noise, open_rig, qemu, tree

from sendense_blockio.extents import Extent
from sendense_repository.errors import LayerDamaged
from sendense_repository.records import Holder, PlacedLayer

pytestmark = pytest.mark.faults


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


def rebased(image: Path, name: str) -> None:
    image.chmod(0o644)
    qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, image)
    image.chmod(0o444)


def parent_missing(rig: Rig, layers: list[PlacedLayer]) -> str:
    rig.image(layers[1]).unlink()
    return "missing"


def parent_wrong(rig: Rig, layers: list[PlacedLayer]) -> str:
    rebased(rig.image(layers[2]), layers[0].layer.name)
    return "catalogue says|tables|header"


def cycle(rig: Rig, layers: list[PlacedLayer]) -> str:
    rebased(rig.image(layers[1]), layers[2].layer.name)
    return "leads back to itself"


@pytest.mark.parametrize("break_chain", [parent_missing, parent_wrong, cycle])
async def test_a_broken_chain_is_refused_and_its_siblings_are_not(
    rig: Rig, break_chain: Callable[[Rig, list[PlacedLayer]], str]
) -> None:
    layers, disks = await rig.chain_of(3)
    disk = noise(SIZE, 9)
    sibling = await rig.sealed("job-3", disk, name="disk-b")
    more = await rig.sealed("job-3", disks[2], [Extent(0, CLUSTER)], parent=layers[2].layer.layer_id)
    await rig.commit("job-3", more, sibling)
    finding = break_chain(rig, layers)
    before = tree(rig.root)

    with pytest.raises(LayerDamaged, match=finding) as refused:
        await rig.parts.deleter.delete(Holder("delete-1", 1), ["job-2"], cascade=False)
    with pytest.raises(LayerDamaged):
        await rig.layer("job-4", parent=more.layer.layer_id)

    assert refused.value.help
    assert {name: digest for name, digest in tree(rig.root).items() if name in before} == before
    # What does not need the broken link goes on: the full, the other disk, and the next increment of that disk.
    assert rig.content(layers[0]) == disks[0]
    assert rig.content(sibling) == disk
    await rig.layer("job-4", disk="disk-b", parent=sibling.layer.layer_id)
