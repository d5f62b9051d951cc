"""Compares what an image holds itself (depth 0) with what its journal says was written, cluster by cluster.

`qemu-img check` calls an image sound whose L2 entry lost a bit and whose cluster therefore reads as the parent's bytes
or as zeroes (platform-facts). Only this comparison sees it, in both directions: nothing is missing, nothing is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sendense_blockio.extents import Extent, align, intersect, merge, subtract, total
from sendense_blockio.journal import Entry
from sendense_qemu.img import MapExtent


@dataclass(frozen=True, slots=True)
class Difference:
    """What does not fit; all empty when the image holds what the manifest says.

    Attributes:
        lost_data: Journaled data that the image does not hold as data.
        lost_zeroes: Journaled zeroes of an increment that the image does not hold: the parent's bytes show through.
        unknown: Clusters that the image holds and no journal entry explains.
        to_prove_zero: Journaled zeroes that are stored as data; they must be read to know that they are zero.
    """

    lost_data: Sequence[Extent]
    lost_zeroes: Sequence[Extent]
    unknown: Sequence[Extent]
    to_prove_zero: Sequence[Extent]

    @property
    def finding(self) -> str:
        """What is wrong, in one clause; empty when nothing is."""
        for what, extents in (
            ("journaled data that the image does not hold", self.lost_data),
            ("journaled zeroes that the image does not hold", self.lost_zeroes),
            ("data that no journal entry explains", self.unknown),
        ):
            if extents:
                return f"{total(extents)} bytes of {what}, first at offset {extents[0].offset}"
        return ""


def compare_allocation(
    entries: Sequence[Entry],
    allocation: Sequence[MapExtent],
    *,
    cluster_size: int,
    virtual_size: int,
    has_parent: bool,
) -> Difference:
    """Compares a layer's journal with what `qemu-img map` says of its image.

    Args:
        entries: The journal's entries, not overlapping, in any order.
        allocation: The map of the image with its chain.
        cluster_size: Bytes.
        virtual_size: Bytes.
        has_parent: Whether zeroes must be held (an increment) or may be left out (a full).
    """
    data = sorted(Extent(entry.offset, entry.length) for entry in entries if not entry.is_zero)
    zeroes = sorted(Extent(entry.offset, entry.length) for entry in entries if entry.is_zero)
    data_clusters = align(data, cluster_size, virtual_size)
    zero_clusters = align(zeroes, cluster_size, virtual_size)
    own = [each for each in allocation if each.depth == 0 and each.present]
    held_data = merge(Extent(each.start, each.length) for each in own if each.data)
    held = merge(Extent(each.start, each.length) for each in own)
    return Difference(
        lost_data=subtract(data_clusters, held_data),
        lost_zeroes=subtract(zero_clusters, held) if has_parent else [],
        unknown=subtract(held, merge([*data_clusters, *zero_clusters])),
        to_prove_zero=intersect(merge(zeroes), held_data),
    )
