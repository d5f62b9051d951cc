"""What is copied of a disk: its areas, widened to clusters, with small gaps read through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sendense_blockio.extents import Extent, align, bridge, total

MOVED_SHARE = 1.10
"""An increment moves at most this times what vCenter named as changed, alignment and gaps included; where alignment
alone takes more, no gap is read through."""
BRIDGE_SHARE = 0.08


@dataclass(frozen=True)
class Plan:
    """What to copy.

    Attributes:
        areas: Sorted, aligned, apart.
        changed_bytes: What vCenter named, before alignment and joining.
    """

    areas: Sequence[Extent]
    changed_bytes: int


def make_plan(areas: Sequence[Extent], alignment: int, capacity: int) -> Plan:
    """Returns the plan for sorted areas.

    Args:
        areas: As vCenter named them, sorted and apart.
        alignment: Bytes; the target's cluster size.
        capacity: The disk's size; the last area may end there, unaligned.
    """
    changed = total(areas)
    aligned = align(areas, alignment, capacity)
    size = total(aligned)
    budget = max(0, min(int(size * BRIDGE_SHARE), int(changed * MOVED_SHARE) - size))
    return Plan(bridge(aligned, budget=budget), changed)
