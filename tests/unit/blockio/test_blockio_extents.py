"""The extent algebra against the plainest model there is: a disk as a set of byte numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_blockio.errors import ExtentBeyondEndError, InvalidExtentError, OverlappingExtentsError
from sendense_blockio.extents import (
    AreasDigest,
    Extent,
    align,
    areas_digest,
    bridge,
    intersect,
    merge,
    normalize,
    split,
    subtract,
    total,
)

CAPACITY = 200

any_extents = st.lists(
    st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 40)).map(
        lambda pair: Extent(pair[0], min(pair[1], CAPACITY - pair[0]))
    ),
    max_size=12,
)


@st.composite
def sorted_extents(draw: st.DrawFn) -> list[Extent]:
    """Sorted extents without overlaps; some touch."""
    cuts = sorted(draw(st.sets(st.integers(0, CAPACITY), max_size=16)))
    pieces = [Extent(a, b - a) for a, b in itertools.pairwise(cuts)]
    return [piece for piece in pieces if draw(st.booleans())]


def bits(extents: list[Extent]) -> set[int]:
    return {byte for extent in extents for byte in range(extent.offset, extent.end)}


def runs(model: set[int]) -> list[Extent]:
    """The canonical list of a set of bytes."""
    found: list[Extent] = []
    for byte in sorted(model):
        if found and found[-1].end == byte:
            found[-1] = Extent(found[-1].offset, found[-1].length + 1)
        else:
            found.append(Extent(byte, 1))
    return found


@given(any_extents)
def test_merge_is_the_canonical_union(extents: list[Extent]) -> None:
    assert merge(extents) == runs(bits(extents))


@given(any_extents)
def test_normalize_keeps_the_bytes_or_refuses_overlaps(extents: list[Extent]) -> None:
    if total(extents) == len(bits(extents)):
        assert normalize(extents) == runs(bits(extents))
    else:
        with pytest.raises(OverlappingExtentsError):
            normalize(extents)


@given(sorted_extents(), st.integers(1, 70))
def test_align_widens_to_whole_clusters_within_the_disk(extents: list[Extent], granularity: int) -> None:
    clusters = {byte // granularity for byte in bits(extents)}
    assert align(extents, granularity, CAPACITY) == runs(
        {byte for byte in range(CAPACITY) if byte // granularity in clusters}
    )


@given(sorted_extents(), sorted_extents())
def test_intersect_and_subtract_are_those_of_sets(left: list[Extent], right: list[Extent]) -> None:
    assert intersect(left, right) == runs(bits(left) & bits(right))
    assert subtract(left, right) == runs(bits(left) - bits(right))


@given(sorted_extents(), st.integers(1, 50))
def test_split_loses_nothing_and_never_crosses_a_multiple(extents: list[Extent], chunk: int) -> None:
    pieces = list(split(extents, chunk))
    assert all(piece.offset // chunk == (piece.end - 1) // chunk for piece in pieces)
    assert normalize(pieces) == normalize(extents)
    assert total(pieces) == total(extents)


@given(sorted_extents(), st.integers(0, 60), st.integers(0, 60))
def test_bridge_stays_within_its_budget_and_gap(extents: list[Extent], max_gap: int, budget: int) -> None:
    bridged = bridge(extents, max_gap, budget)
    added = bits(bridged) - bits(extents)
    assert bits(bridged) >= bits(extents)
    assert len(added) <= budget
    assert bridged == normalize(bridged)
    assert all(gap.length < max_gap for gap in runs(added))
    # Greedy from the smallest: any gap left open below the limit no longer fits.
    left_open = [b.offset - a.end for a, b in itertools.pairwise(bridged)]
    assert all(gap >= max_gap or gap > budget - len(added) for gap in left_open)


def test_bridge_adds_at_most_8_percent_when_not_told_otherwise() -> None:
    extents = [Extent(index * 1000, 100) for index in range(20)]
    extents += [Extent(30_000, 10_000), Extent(40_050, 10_000)]
    bridged = bridge(extents, max_gap=2000)
    assert total(bridged) <= total(extents) * 1.08
    assert Extent(30_000, 20_050) in bridged, "the smallest gap is closed first"
    assert len(bridged) < len(extents) - 1, "what is left of the budget is used"


@given(sorted_extents(), st.integers(1, 50))
def test_digest_depends_on_the_bytes_only(extents: list[Extent], chunk: int) -> None:
    paged = AreasDigest(CAPACITY)
    for piece in split(extents, chunk):
        paged.add(piece)
        paged.hexdigest()
    assert paged.hexdigest() == areas_digest(extents, CAPACITY)
    assert paged.total == total(extents)


@given(sorted_extents(), sorted_extents())
def test_digest_tells_different_areas_apart(left: list[Extent], right: list[Extent]) -> None:
    same = bits(left) == bits(right)
    assert (areas_digest(left, CAPACITY) == areas_digest(right, CAPACITY)) is same
    assert areas_digest(left, CAPACITY) != areas_digest(left, CAPACITY + 1)


def test_digest_is_the_documented_encoding() -> None:
    # Agents and repositories of different versions must agree: this value may never change.
    extents = [Extent(0, 65536), Extent(131072, 65536)]
    assert areas_digest(extents, 1 << 20) == "09a250c3fc6a025a343d516b3c9496694e4841a581f039bc8018fa290e81603a"


def test_digest_survives_many_areas() -> None:
    extents = [Extent(index * 8, 4) for index in range(10_000)]
    again = AreasDigest(80_000)
    again.update(extents[:5000])
    again.update(extents[5000:])
    assert again.hexdigest() == areas_digest(extents, 80_000)


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, 0), (5, -3), (2**63 - 1, 1)])
def test_impossible_extents_are_refused(offset: int, length: int) -> None:
    with pytest.raises(InvalidExtentError) as caught:
        Extent(offset, length)
    assert (caught.value.offset, caught.value.length) == (offset, length)


def test_extents_beyond_the_end_are_refused() -> None:
    extent = Extent(100, 50)
    for refuse in (
        lambda: normalize([extent], capacity=149),
        lambda: merge([extent], capacity=149),
        lambda: align([extent], 64, 149),
        lambda: areas_digest([extent], 149),
    ):
        with pytest.raises(ExtentBeyondEndError) as caught:
            refuse()
        assert caught.value.capacity == 149


def test_wrong_order_is_refused_where_order_is_expected() -> None:
    unsorted = [Extent(50, 10), Extent(0, 10)]
    for refuse in (
        lambda: intersect(unsorted, []),
        lambda: subtract([Extent(0, 100)], unsorted),
        lambda: align(unsorted, 8, 100),
        lambda: bridge(unsorted),
        lambda: areas_digest(unsorted, 100),
    ):
        with pytest.raises(OverlappingExtentsError):
            refuse()


def test_zero_granularity_is_refused() -> None:
    with pytest.raises(ValueError, match="granularity 0"):
        align([], 0, 10)
    with pytest.raises(ValueError, match="chunk 0"):
        list(split([], 0))
