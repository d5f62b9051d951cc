"""Arithmetic on areas: half-open byte ranges [start, end) of a disk.

VMware tracks changes in blocks of 64 KiB, so a change log is a sorted list of areas that do not touch each
other, rounded outwards to that granularity and cut at the disk's capacity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

GRANULARITY = 64 * 1024
"""Bytes of one change-tracking block (also the lab's own unit of copy-on-write)."""

Area = tuple[int, int]
"""(start, end), bytes, end excluded."""


def merge(areas: Iterable[Area]) -> tuple[Area, ...]:
    """Sorts areas and joins those that overlap or touch; empty ones disappear."""
    merged: list[Area] = []
    for start, end in sorted(areas):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def round_out(areas: Iterable[Area], capacity: int, granularity: int = GRANULARITY) -> tuple[Area, ...]:
    """Widens areas to whole blocks, cut at the disk's capacity (bytes), and merges them."""
    return merge(
        (start // granularity * granularity, min(-(-end // granularity) * granularity, capacity))
        for start, end in areas
        if start < end
    )


def subtract(areas: Iterable[Area], holes: Iterable[Area]) -> tuple[Area, ...]:
    """Returns what of `areas` lies in none of `holes`; both lists are walked once."""
    left: list[Area] = []
    cuts = merge(holes)
    first = 0
    for start, end in merge(areas):
        while first < len(cuts) and cuts[first][1] <= start:
            first += 1
        position = start
        for cut_start, cut_end in itertools.islice(cuts, first, None):
            if cut_start >= end:
                break
            if cut_start > position:
                left.append((position, cut_start))
            position = cut_end
        if position < end:
            left.append((position, end))
    return tuple(left)


def intersect(areas: Iterable[Area], others: Iterable[Area]) -> tuple[Area, ...]:
    """Returns what lies in both lists."""
    mine = merge(areas)
    return subtract(mine, subtract(mine, others))


def total(areas: Iterable[Area]) -> int:
    """Returns the bytes in areas that do not overlap."""
    return sum(end - start for start, end in areas)


def page(areas: Iterable[Area], start: int, capacity: int, limit: int) -> tuple[int, tuple[Area, ...]]:
    """Cuts one answer of QueryChangedDiskAreas out of a whole list.

    Args:
        areas: Sorted, merged areas of the disk.
        start: Where the caller asked to start, bytes.
        capacity: Size of the disk, bytes.
        limit: Most areas in one answer.

    Returns:
        Bytes described by this answer, counted from `start`, and the areas in them. When areas were left out
        the description ends with the last area shown, so the caller asks again from there.
    """
    inside = [(max(area_start, start), end) for area_start, end in areas if end > start]
    shown = tuple(inside[:limit])
    end = capacity if len(inside) <= limit else shown[-1][1]
    return end - start, shown
