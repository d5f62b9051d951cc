"""Area arithmetic: the change log and the pages cut from it lose nothing and add nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sendense_lab import areas

CAPACITY = 1000
pieces = st.lists(st.tuples(st.integers(0, CAPACITY), st.integers(0, CAPACITY)).map(lambda p: (min(p), max(p))))


def covered(found: object) -> set[int]:
    return {n for start, end in found for n in range(start, end)}  # type: ignore[attr-defined]


@given(pieces)
def test_merge_keeps_exactly_the_bytes_sorted_and_apart(found: list[areas.Area]) -> None:
    merged = areas.merge(found)
    assert covered(merged) == covered(found)
    assert all(left[1] < right[0] for left, right in pairwise(merged))


@given(pieces, pieces)
def test_subtract_is_set_difference(found: list[areas.Area], holes: list[areas.Area]) -> None:
    assert covered(areas.subtract(found, holes)) == covered(found) - covered(holes)


@given(pieces, pieces)
def test_intersect_is_set_intersection(found: list[areas.Area], others: list[areas.Area]) -> None:
    assert covered(areas.intersect(found, others)) == covered(found) & covered(others)


@given(pieces)
def test_round_out_covers_whole_blocks_up_to_the_capacity(found: list[areas.Area]) -> None:
    rounded = areas.round_out(found, CAPACITY, granularity=64)
    assert covered(rounded) >= covered(found)
    assert all(start % 64 == 0 and (end % 64 == 0 or end == CAPACITY) for start, end in rounded)
    assert areas.total(rounded) <= 64 * len({n // 64 for n in covered(found)})


@given(pieces, st.integers(1, 4))
def test_pages_of_any_size_reassemble_the_whole_list(found: list[areas.Area], limit: int) -> None:
    whole = areas.merge(found)
    start, collected = 0, []
    while start < CAPACITY:
        length, shown = areas.page(whole, start, CAPACITY, limit)
        assert length > 0
        assert len(shown) <= limit
        collected += shown
        start += length
    assert start == CAPACITY
    assert areas.merge(collected) == whole


def test_a_page_asked_for_inside_an_area_starts_there() -> None:
    assert areas.page(((100, 200),), 150, CAPACITY, 5) == (CAPACITY - 150, ((150, 200),))
