"""Depth-0 allocation against the manifest: nothing missing, nothing more, at cluster granularity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_blockio.extents import Extent
from sendense_blockio.journal import Entry
from sendense_qemu.img import MapExtent
from sendense_repository.manifest import Difference, compare_allocation

C = 65536
SIZE = 16 * C + 512
DIGEST = b"\1" * 32


def data(start: int, length: int, depth: int = 0) -> MapExtent:
    return MapExtent(start, length, depth, zero=False, data=True, present=True)


def zero(start: int, length: int, depth: int = 0) -> MapExtent:
    return MapExtent(start, length, depth, zero=True, data=False, present=True)


def hole(start: int, length: int) -> MapExtent:
    return MapExtent(start, length, 0, zero=True, data=False, present=False)


def compare(entries: list[Entry], allocation: list[MapExtent], *, has_parent: bool = True) -> Difference:
    return compare_allocation(entries, allocation, cluster_size=C, virtual_size=SIZE, has_parent=has_parent)


def test_data_and_zeroes_in_their_places_fit() -> None:
    found = compare([Entry(C, C, DIGEST), Entry(3 * C, C, None)], [data(0, C, 1), data(C, C), zero(3 * C, C)])
    assert not found.finding
    assert not found.to_prove_zero


@pytest.mark.parametrize("held", [data(C, C, 1), zero(C, C), hole(C, C)])
def test_data_that_is_not_held_as_data_at_depth_0_is_lost(held: MapExtent) -> None:
    found = compare([Entry(C, C, DIGEST)], [held])
    assert found.lost_data == [Extent(C, C)]
    assert found.finding


def test_zeroes_may_be_left_out_of_a_full_only() -> None:
    entries = [Entry(C, C, None)]
    assert not compare(entries, [hole(0, SIZE)], has_parent=False).finding
    assert compare(entries, [data(0, 2 * C, 1)], has_parent=True).lost_zeroes == [Extent(C, C)]


@pytest.mark.parametrize("held", [data(5 * C, C), zero(5 * C, C)])
def test_what_no_entry_explains_is_refused_even_when_it_is_zero(held: MapExtent) -> None:
    assert compare([Entry(C, C, DIGEST)], [data(C, C), held]).unknown == [Extent(5 * C, C)]


def test_an_entry_that_is_not_aligned_explains_its_whole_clusters() -> None:
    assert not compare([Entry(C + 512, 512, DIGEST)], [data(C, C)]).finding
    assert not compare([Entry(16 * C, 512, DIGEST)], [data(16 * C, 512)]).finding


def test_zeroes_that_are_stored_as_data_must_be_read() -> None:
    found = compare([Entry(C, 512, DIGEST), Entry(C + 512, C - 512, None)], [data(C, C)])
    assert not found.finding
    assert found.to_prove_zero == [Extent(C + 512, C - 512)]


@given(st.lists(st.sampled_from(["data", "zero", "below"]), min_size=16, max_size=16), st.integers(0, 15))
def test_any_one_cluster_that_differs_is_found(kinds: list[str], wrong: int) -> None:
    entries = [
        Entry(index * C, C, DIGEST if kind == "data" else None) for index, kind in enumerate(kinds) if kind != "below"
    ]

    def held(index: int, kind: str) -> MapExtent:
        place = index * C
        return {"data": data(place, C), "zero": zero(place, C), "below": data(place, C, 1)}[kind]

    allocation = [held(index, kind) for index, kind in enumerate(kinds)]
    assert not compare(entries, allocation).finding
    for other in {"data", "zero", "below"} - {kinds[wrong]}:
        damaged = [*allocation]
        damaged[wrong] = held(wrong, other)
        difference = compare(entries, damaged)
        if (kinds[wrong], other) == ("zero", "data"):
            assert difference.to_prove_zero == [Extent(wrong * C, C)]
        else:
            assert difference.finding
