"""What a merge of layers must hold: of each layer's manifest the parts that no layer above covers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sendense_blockio.extents import Extent, align, merge, subtract, total
from sendense_blockio.journal import Entry


@dataclass(frozen=True, slots=True)
class Visible:
    """An entry of a layer and what of it still shows.

    Attributes:
        depth: 0 for the layer on top, which receives the others, 1 for the one below it, and so on.
        entry: As the layer's manifest has it.
        pieces: What of it no layer above covers; in order, at least one.
    """

    depth: int
    entry: Entry
    pieces: Sequence[Extent]

    @property
    def is_whole(self) -> bool:
        """Whether all of the entry shows, so that its digest stands for it."""
        first = self.pieces[0]
        return first.offset == self.entry.offset and first.length == self.entry.length


@dataclass(frozen=True, slots=True)
class MergedManifest:
    """What a merge consists of.

    Attributes:
        visible: Every entry that shows, by layer from the top down, each layer's by offset.
        areas: All bytes that the merged layer holds.
        upper_areas: Those that layers above the lowest one give: what a copy of the lowest one lacks.
    """

    visible: Sequence[Visible]
    areas: Sequence[Extent]
    upper_areas: Sequence[Extent]

    def data_bytes(self, cluster_size: int, virtual_size: int) -> int:
        """Returns the bytes of whole clusters with data that the merged layer has."""
        return self._bytes(cluster_size, virtual_size, upper_only=False)

    def upper_data_bytes(self, cluster_size: int, virtual_size: int) -> int:
        """Returns the bytes of whole clusters with data that layers above the lowest one give."""
        return self._bytes(cluster_size, virtual_size, upper_only=True)

    def _bytes(self, cluster_size: int, virtual_size: int, *, upper_only: bool) -> int:
        lowest = max((each.depth for each in self.visible), default=0)
        pieces = merge(
            piece
            for each in self.visible
            if not each.entry.is_zero and not (upper_only and each.depth == lowest)
            for piece in each.pieces
        )
        return total(align(pieces, cluster_size, virtual_size))


def merge_manifests(manifests: Sequence[Sequence[Entry]]) -> MergedManifest:
    """Merges manifests.

    Args:
        manifests: One for each layer, from the top one down; each one's entries do not overlap.

    Raises:
        OverlappingExtentsError: Entries of one manifest overlap.
    """
    visible: list[Visible] = []
    covered: list[Extent] = []
    upper: list[Extent] = []
    for depth, entries in enumerate(manifests):
        ordered = sorted(entries, key=lambda entry: entry.offset)
        visible += [Visible(depth, entry, pieces) for entry, pieces in _showing(ordered, covered) if pieces]
        upper = covered
        covered = merge([*covered, *(Extent(entry.offset, entry.length) for entry in ordered)])
    return MergedManifest(visible, covered, upper)


def _showing(entries: Sequence[Entry], covered: Sequence[Extent]) -> Iterator[tuple[Entry, list[Extent]]]:
    """Yields each entry with what of it is not covered; both lists are sorted and without overlaps."""
    start = 0
    for entry in entries:
        while start < len(covered) and covered[start].end <= entry.offset:
            start += 1
        stop = start
        while stop < len(covered) and covered[stop].offset < entry.end:
            stop += 1
        yield entry, subtract([Extent(entry.offset, entry.length)], covered[start:stop])
