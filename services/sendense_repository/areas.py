"""A layer's area list on disk: what is to be copied, fixed before the first byte moves.

The file is the areas as journal entries without digest (`sendense_blockio.journal`), in order. It counts from the
moment that the journal exists, whose header holds the list's digest; it goes away when the layer is sealed, since the
sealed journal covers exactly the same bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

from sendense_blockio.errors import BlockIOError
from sendense_blockio.extents import Extent, areas_digest, normalize
from sendense_blockio.journal import Entry, decode_entries, encode_entries
from sendense_repository import durable


class AreasDamaged(Exception):
    """The area list is not the one that was fixed."""


def write_areas(path: Path, areas: Sequence[Extent]) -> None:
    """Writes an area list durably, in place of one that was never fixed."""
    durable.replace(path, encode_entries(Entry(area.offset, area.length, None) for area in areas))


def read_areas(path: Path, digest: str, virtual_size: int) -> list[Extent]:
    """Reads an area list.

    Raises:
        AreasDamaged: It is missing, or does not have the digest.
    """
    try:
        areas = normalize(Extent(entry.offset, entry.length) for entry in decode_entries(path.read_bytes()))
        found = areas_digest(areas, virtual_size)
    except (OSError, BlockIOError) as error:
        raise AreasDamaged(f"the area list {path.name} cannot be read: {error}") from error
    if found != digest:
        raise AreasDamaged(f"the area list {path.name} is not the one that was fixed")
    return areas


class AreaIndex:
    """Tells quickly whether bytes belong to an area list."""

    def __init__(self, areas: Sequence[Extent]) -> None:
        self.areas = areas
        self._starts = [area.offset for area in areas]

    def first_outside(self, entries: Iterable[Entry]) -> Entry | None:
        """Returns the first entry that is not wholly inside one area, None when all are."""
        for entry in entries:
            index = bisect_right(self._starts, entry.offset) - 1
            if index < 0 or entry.end > self.areas[index].end:
                return entry
        return None
