"""Audits at the repository: samples are what the chain gives; marks go back to the writer of a block, no further."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from repository_rig import CLUSTER, SIZE, VM, Rig, open_rig

from sendense_blockio.extents import Extent, intersect, merge, subtract
from sendense_repository.errors import LayerNotFound, LayerNotSealed, StaleAttempt
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.records import Holder


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


async def sampled(rig: Rig, layer_id: str, **size: float) -> list[tuple[Extent, bytes]]:
    wanted = {"blocks": 0, "share": 0.0, "slices": 0, "seed": 1, **size}
    return [each async for page in rig.parts.audits.sample(layer_id, **wanted) for each in page]  # type: ignore[arg-type]


async def marked(rig: Rig) -> set[str]:
    points = await rig.parts.catalogue.points.of_vm((await rig.parts.registry.get("local")).repository_id, VM)
    known = await IntegrityView(rig.parts.catalogue).of_points(points)
    one_by_one = {each.backup_id: await IntegrityView(rig.parts.catalogue).of_point(each) for each in points}
    found = {backup_id for backup_id, each in one_by_one.items() if each.suspicion}
    assert {each.state for each in known.values()} == {"unverified"}, "nothing is said of the files"
    assert {backup_id for backup_id, each in known.items() if each.suspicion} == found
    return found


async def test_a_sample_is_what_the_chain_gives_and_nothing_that_was_copied(rig: Rig) -> None:
    layers, disks = await rig.chain_of(5)
    found = await sampled(rig, layers[-1].layer.layer_id, share=1.0)
    copied = [
        Extent(4 * CLUSTER, CLUSTER),
        Extent(12 * CLUSTER, 2 * CLUSTER),
        Extent(3 * (1 << 20) + 4 * CLUSTER, CLUSTER),
    ]
    blocks = [block for block, _ in found]
    assert merge(blocks) == subtract([Extent(0, SIZE)], copied)
    assert not intersect(blocks, copied)
    assert all(digest == blake3(disks[-1][block.offset : block.end]).digest() for block, digest in found)
    assert blocks[-1].end == SIZE, "the cut last cluster too"


async def test_of_a_full_the_holes_are_sampled_as_zeroes(rig: Rig) -> None:
    disk = bytes(CLUSTER) + b"x" * CLUSTER + bytes(SIZE - 2 * CLUSTER)
    layer = await rig.backup("job-0", disk, [Extent(CLUSTER, CLUSTER)])
    found = dict(await sampled(rig, layer.layer.layer_id, share=1.0))
    assert Extent(CLUSTER, CLUSTER) not in found
    assert found[Extent(0, CLUSTER)] == blake3(bytes(CLUSTER)).digest()


async def test_each_point_samples_the_next_slice(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    seen: list[Extent] = []
    parent = layers[-1].layer.layer_id
    for number in range(4):
        layer = await rig.sealed(f"more-{number}", disks[-1], [Extent(0, CLUSTER)], parent=parent)
        seen += [block for block, _ in await sampled(rig, layer.layer.layer_id, slices=4)]
        await rig.commit(f"more-{number}", layer)
        parent = layer.layer.layer_id
    assert merge(sorted(seen)) == [Extent(CLUSTER, SIZE - CLUSTER)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param(3, {"job-3"}, id="written by the parent"),
        pytest.param(1, {"job-1", "job-2", "job-3"}, id="written by an older increment"),
        pytest.param(24, {"job-0", "job-1", "job-2", "job-3"}, id="written by the full"),
        pytest.param(44, {"job-0", "job-1", "job-2", "job-3"}, id="never written"),
    ],
)
async def test_marks_go_back_to_the_layer_that_last_wrote_the_block(rig: Rig, block: int, expected: set[str]) -> None:
    layers, disks = await rig.chain_of(4)
    newest = await rig.sealed("job-4", disks[-1], [Extent(60 * CLUSTER, CLUSTER)], parent=layers[-1].layer.layer_id)
    areas = [Extent(block * CLUSTER, CLUSTER)]
    points = await rig.parts.audits.mark_suspect(Holder("job-4", 1), newest.layer.layer_id, areas, "it differs")
    assert set(points) == expected
    assert points == sorted(points, reverse=True), "newest first"
    again = await rig.parts.audits.mark_suspect(Holder("job-4", 1), newest.layer.layer_id, areas, "it differs")
    assert again == points
    assert await marked(rig) == expected
    await rig.restart()
    assert await marked(rig) == expected, "marks outlive the process"


async def test_a_full_has_no_chain_to_doubt(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    full = await rig.sealed("job-9", disks[-1], [Extent(0, CLUSTER)])
    found = await rig.parts.audits.mark_suspect(
        Holder("job-9", 1), full.layer.layer_id, [Extent(CLUSTER, CLUSTER)], "x"
    )
    assert found == []
    assert await marked(rig) == set()
    assert layers


async def test_what_is_not_sealed_not_there_or_too_old_is_refused(rig: Rig) -> None:
    layers, disks = await rig.chain_of(2)
    open_layer = await rig.written("job-5", disks[-1], [Extent(0, CLUSTER)], parent=layers[-1].layer.layer_id)
    with pytest.raises(LayerNotSealed):
        await sampled(rig, open_layer.layer.layer_id, blocks=1)
    with pytest.raises(LayerNotFound):
        await sampled(rig, "none", blocks=1)
    sealed = await rig.parts.sealer.seal(Holder("job-5", 2), open_layer.layer.layer_id, "x")
    with pytest.raises(StaleAttempt):
        await rig.parts.audits.mark_suspect(Holder("job-5", 1), sealed.layer.layer_id, [Extent(0, CLUSTER)], "x")
