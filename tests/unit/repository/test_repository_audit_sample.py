"""Which blocks an audit compares: what was not copied, all of it in turn; a lie is found as often as is stated."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_blockio.extents import Extent, align, intersect, merge, subtract
from sendense_repository.audit_sample import SampleSize, choose_blocks
from sendense_repository.layout import CLUSTER_SIZE

CLUSTERS = 400
CAPACITY = CLUSTERS * CLUSTER_SIZE - 512
DEFAULT_BLOCKS = 256


def at(*clusters: int) -> list[Extent]:
    return merge([Extent(each * CLUSTER_SIZE, CLUSTER_SIZE) for each in sorted(set(clusters))], None)


copies = st.lists(st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 40 * CLUSTER_SIZE)), max_size=12).map(
    lambda pairs: merge([Extent(offset, min(length, CAPACITY - offset)) for offset, length in sorted(pairs)])
)


@given(
    copied=copies,
    blocks=st.integers(0, 500),
    share=st.floats(0, 1),
    slices=st.integers(0, 50),
    turn=st.integers(0, 1000),
    seed=st.integers(0, 1 << 50),
)
def test_blocks_are_clusters_that_were_not_copied_and_as_many_as_asked_for(
    copied: list[Extent], blocks: int, share: float, slices: int, turn: int, seed: int
) -> None:
    size = SampleSize(blocks, share, slices, turn)
    chosen = list(choose_blocks(copied, CAPACITY, size, seed))
    assert chosen == sorted(chosen)
    assert len({block.offset for block in chosen}) == len(chosen)
    assert all(block.offset % CLUSTER_SIZE == 0 for block in chosen)
    assert all(block.length == min(CLUSTER_SIZE, CAPACITY - block.offset) for block in chosen)
    assert not intersect(chosen, copied)
    candidates = CLUSTERS - sum(-(-area.length // CLUSTER_SIZE) for area in align(copied, CLUSTER_SIZE, CAPACITY))
    assert len(chosen) >= min(candidates, max(blocks, math.ceil(candidates * share)))


@given(copied=copies, slices=st.integers(1, 60), start=st.integers(0, 1000))
def test_after_as_many_turns_as_slices_every_block_was_compared_once(
    copied: list[Extent], slices: int, start: int
) -> None:
    found: list[Extent] = []
    for turn in range(start, start + slices):
        found += choose_blocks(copied, CAPACITY, SampleSize(0, 0.0, slices, turn), 0)
    wanted = subtract([Extent(0, CAPACITY)], align(copied, CLUSTER_SIZE, CAPACITY))
    assert len(found) == sum(-(-area.length // CLUSTER_SIZE) for area in wanted)
    assert merge(sorted(found)) == wanted


def test_all_is_compared_at_a_share_of_one() -> None:
    chosen = list(choose_blocks(at(3, 7), CAPACITY, SampleSize(0, 1.0), 1))
    assert merge(chosen) == subtract([Extent(0, CAPACITY)], at(3, 7))


@pytest.mark.parametrize(("hidden", "gibibytes"), [(1, 1), (16, 4), (64, 16)])
def test_at_the_default_a_lie_is_found_as_often_as_the_documentation_says(
    hidden: int, gibibytes: int, record_property: Callable[[str, object], None]
) -> None:
    """`hidden` blocks left out of U are among n = 256 with the chance 1 - (1 - n/U)^hidden, for n far below U."""
    clusters = gibibytes * (1 << 30) // CLUSTER_SIZE
    lie = range(clusters // 3, clusters // 3 + hidden)
    trials, caught = 400, 0
    for seed in range(trials):
        chosen = choose_blocks([], clusters * CLUSTER_SIZE, SampleSize(DEFAULT_BLOCKS, 0.0), seed)
        caught += any(block.offset // CLUSTER_SIZE in lie for block in chosen)
    chance = 1 - (1 - DEFAULT_BLOCKS / clusters) ** hidden
    spread = math.sqrt(trials * chance * (1 - chance))
    said = (
        f"{hidden} blocks of {gibibytes} GiB: caught {caught} of {trials}, stated {trials * chance:.1f} ± {spread:.1f}"
    )
    record_property("audit", said)
    # The seeds are fixed, so this cannot turn by chance: five standard deviations only say how near it must be.
    assert abs(caught - trials * chance) < 5 * spread, said
