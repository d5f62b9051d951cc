"""Which blocks of a disk an audit compares: pure, and the same for the same seed.

Candidates are the clusters that a backup did not copy. Some are taken by chance, and one slice of the disk whole. With
n of U candidates taken by chance a lie about k of them is found with the chance 1 - C(U-k, n) / C(U, n), which is n / U
for a single block; the slice, which moves on with each restore point, finds it after as many points as there are slices
in any case.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from sendense_blockio.extents import Extent, align, subtract
from sendense_repository.layout import CLUSTER_SIZE


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How much is compared.

    Attributes:
        blocks: At least so many blocks by chance.
        share: At least this share of the candidates by chance, 0 to 1.
        slices: Slices of the disk, of which one is compared whole; 0 for none.
        turn: Which one; counts on with each restore point.
    """

    blocks: int
    share: float
    slices: int = 0
    turn: int = 0


def choose_blocks(copied: Sequence[Extent], capacity: int, size: SampleSize, seed: int) -> Iterator[Extent]:
    """Yields the blocks to compare, by offset.

    Args:
        copied: What the backup copied; clusters that it touches are no candidates.
        capacity: Bytes of the disk.
        size: How much.
        seed: Chooses by chance.
    """
    candidates = _Candidates(subtract([Extent(0, capacity)], align(copied, CLUSTER_SIZE, capacity)))
    first, end = _slice(candidates, capacity, size)
    wanted = min(candidates.count, max(size.blocks, math.ceil(candidates.count * size.share)))
    if wanted == candidates.count:
        yield from map(candidates.block, range(candidates.count))
        return
    chosen = sorted(random.Random(seed).sample(range(candidates.count), wanted))  # noqa: S311  # no secret
    before, after = chosen[: bisect_left(chosen, first)], chosen[bisect_left(chosen, end) :]
    yield from map(candidates.block, chain(before, range(first, end), after))


class _Candidates:
    """The clusters of extents, numbered from 0 without listing them."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = extents
        self._starts = [0, *accumulate(-(-extent.length // CLUSTER_SIZE) for extent in extents)]

    @property
    def count(self) -> int:
        return self._starts[-1]

    def block(self, number: int) -> Extent:
        index = bisect_right(self._starts, number) - 1
        extent = self._extents[index]
        offset = extent.offset + (number - self._starts[index]) * CLUSTER_SIZE
        return Extent(offset, min(CLUSTER_SIZE, extent.end - offset))

    def first_from(self, offset: int) -> int:
        """Returns the number of the first candidate that begins at an offset or behind it."""
        index = bisect_right(self._extents, offset, key=lambda extent: extent.end)
        if index == len(self._extents):
            return self.count
        inside = max(0, offset - self._extents[index].offset)
        return self._starts[index] + -(-inside // CLUSTER_SIZE)


def _slice(candidates: _Candidates, capacity: int, size: SampleSize) -> tuple[int, int]:
    """Returns first and end number of the candidates in the slice whose turn it is."""
    if size.slices < 1:
        return 0, 0
    clusters = -(-capacity // CLUSTER_SIZE)
    turn = size.turn % size.slices
    first, end = (clusters * each // size.slices * CLUSTER_SIZE for each in (turn, turn + 1))
    return candidates.first_from(first), candidates.first_from(end)
