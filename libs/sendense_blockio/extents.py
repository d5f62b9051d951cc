"""The algebra of extents: which bytes of a disk are meant.

What always holds: a list that a function here returns is *canonical*, that is sorted by offset, without
overlaps and without two extents that touch (they are one). Functions of two lists expect sorted,
non-overlapping lists and raise `OverlappingExtentsError` otherwise; nothing is silently repaired, because a
wrong area list makes a wrong backup.

Signatures (all lengths and offsets in bytes):

    Extent(offset: int, length: int)              .end
    normalize(extents, capacity=None) -> list[Extent]
    merge(extents, capacity=None) -> list[Extent]
    align(extents, granularity, capacity) -> list[Extent]
    intersect(left, right) -> list[Extent]
    subtract(left, right) -> list[Extent]
    split(extents, chunk) -> Iterator[Extent]
    bridge(extents, max_gap=DEFAULT_MAX_GAP, budget=None) -> list[Extent]
    total(extents) -> int
    areas_digest(extents, capacity) -> str
    AreasDigest(capacity)                         .add(extent) .update(extents) .hexdigest() .total
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from sendense_blockio.errors import ExtentBeyondEndError, InvalidExtentError, OverlappingExtentsError

MAX_OFFSET = 2**63 - 1
"""Largest end of an extent: NBD and off_t know no more."""

DEFAULT_MAX_GAP = 256 * 1024
"""Gaps below this are read through: 64 KiB changes merged to 256 KiB were measured to run like long ones."""

DEFAULT_BRIDGE_SHARE = 0.08
"""Share of the total that reading through gaps may add; the promise is 1.10 with alignment included."""

_AREA = struct.Struct("<QQ")
_DIGEST_CONTEXT = b"sendense areas v1\0"
_DIGEST_FLUSH_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A run of bytes on a disk.

    Attributes:
        offset: first byte, from 0.
        length: bytes, at least 1.

    Raises:
        InvalidExtentError: for a negative offset, a length below 1, or an end above 2**63-1.
    """

    offset: int
    length: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length < 1 or self.offset + self.length > MAX_OFFSET:
            raise InvalidExtentError(self.offset, self.length)

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length


def check(extents: Iterable[Extent], capacity: int | None = None) -> Iterator[Extent]:
    """Passes sorted extents through, and looks at each.

    Args:
        extents: sorted by offset; touching ones are allowed.
        capacity: the disk's size in bytes, when ends are to be checked against it.

    Raises:
        OverlappingExtentsError: an extent begins before the previous one ends (overlap or wrong order).
        ExtentBeyondEndError: an extent ends after the capacity.
    """
    end = 0
    for extent in extents:
        if extent.offset < end:
            raise OverlappingExtentsError(extent.offset, extent.length, end)
        end = extent.offset + extent.length
        if capacity is not None and end > capacity:
            raise ExtentBeyondEndError(extent.offset, extent.length, capacity)
        yield extent


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Joins neighbours that touch or overlap; `extents` are sorted."""
    start = end = -1
    for extent in extents:
        if extent.offset > end or start < 0:
            if start >= 0:
                yield Extent(start, end - start)
            start, end = extent.offset, extent.end
        elif extent.end > end:
            end = extent.end
    if start >= 0:
        yield Extent(start, end - start)


def normalize(extents: Iterable[Extent], capacity: int | None = None) -> list[Extent]:
    """Returns the canonical list of the same bytes: sorted, touching neighbours joined.

    Raises:
        OverlappingExtentsError: two extents share a byte.
        ExtentBeyondEndError: an extent ends after the capacity.
    """
    return list(_joined(check(sorted(extents), capacity)))


def merge(extents: Iterable[Extent], capacity: int | None = None) -> list[Extent]:
    """Returns the canonical list of the union; extents may come in any order and overlap.

    Raises:
        ExtentBeyondEndError: an extent ends after the capacity.
    """
    return list(check(_joined(sorted(extents)), capacity))


def align(extents: Iterable[Extent], granularity: int, capacity: int) -> list[Extent]:
    """Widens sorted extents outwards to multiples of `granularity`, clipped to the capacity.

    Args:
        extents: sorted, without overlaps, within the capacity.
        granularity: bytes, at least 1; usually the cluster size.
        capacity: the disk's size in bytes; the last extent may end there, unaligned.

    Raises:
        ValueError: the granularity is below 1.
        OverlappingExtentsError: the input overlaps.
        ExtentBeyondEndError: the input goes beyond the capacity.
    """
    if granularity < 1:
        raise ValueError(f"granularity {granularity} must be at least 1")

    def widened() -> Iterator[Extent]:
        for extent in check(extents, capacity):
            start = extent.offset - extent.offset % granularity
            end = min(-(-extent.end // granularity) * granularity, capacity)
            yield Extent(start, end - start)

    return list(_joined(widened()))


def intersect(left: Iterable[Extent], right: Iterable[Extent]) -> list[Extent]:
    """Returns the bytes that are in both lists."""

    def common() -> Iterator[Extent]:
        rights = check(right)
        other = next(rights, None)
        for extent in check(left):
            while other is not None and other.end <= extent.offset:
                other = next(rights, None)
            while other is not None and other.offset < extent.end:
                start, end = max(extent.offset, other.offset), min(extent.end, other.end)
                yield Extent(start, end - start)
                if other.end > extent.end:
                    break
                other = next(rights, None)

    return list(_joined(common()))


def subtract(left: Iterable[Extent], right: Iterable[Extent]) -> list[Extent]:
    """Returns the bytes of `left` that are not in `right`."""

    def remaining() -> Iterator[Extent]:
        rights = check(right)
        other = next(rights, None)
        for extent in check(left):
            position = extent.offset
            while other is not None and other.end <= position:
                other = next(rights, None)
            while other is not None and other.offset < extent.end:
                if other.offset > position:
                    yield Extent(position, other.offset - position)
                position = min(other.end, extent.end)
                if other.end > extent.end:
                    break
                other = next(rights, None)
            if position < extent.end:
                yield Extent(position, extent.end - position)

    return list(_joined(remaining()))


def split(extents: Iterable[Extent], chunk: int) -> Iterator[Extent]:
    """Cuts extents at multiples of `chunk` on the disk, so that long runs become aligned requests.

    Raises:
        ValueError: the chunk is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk {chunk} must be at least 1")
    for extent in extents:
        position, end = extent.offset, extent.end
        while position < end:
            stop = min(position - position % chunk + chunk, end)
            yield Extent(position, stop - position)
            position = stop


def bridge(extents: Iterable[Extent], max_gap: int = DEFAULT_MAX_GAP, budget: int | None = None) -> list[Extent]:
    """Joins neighbours across small gaps: fewer, longer requests for a few bytes more.

    Args:
        extents: sorted, without overlaps.
        max_gap: only gaps below this many bytes are joined.
        budget: bytes that may be added in all, smallest gaps first (of equal ones the first on the disk);
            None stands for 8 % of the total.

    Raises:
        OverlappingExtentsError: the input overlaps.
    """
    canonical = list(_joined(check(extents)))
    if budget is None:
        budget = int(total(canonical) * DEFAULT_BRIDGE_SHARE)
    gaps = [
        (right.offset - left.end, index)
        for index, (left, right) in enumerate(itertools.pairwise(canonical))
        if right.offset - left.end < max_gap
    ]
    heapq.heapify(gaps)
    closed = bytearray(len(canonical))
    while gaps and gaps[0][0] <= budget:
        gap, index = heapq.heappop(gaps)
        budget -= gap
        closed[index] = 1

    def with_bridges() -> Iterator[Extent]:
        for index, extent in enumerate(canonical):
            if closed[index]:
                yield Extent(extent.offset, canonical[index + 1].offset - extent.offset)
            else:
                yield extent

    return list(_joined(with_bridges()))


def total(extents: Iterable[Extent]) -> int:
    """Returns the sum of the lengths in bytes."""
    return sum(extent.length for extent in extents)


class AreasDigest:
    r"""The digest of an area list, from a stream of areas.

    Two streams have the same digest exactly when they mean the same bytes of a disk of the same capacity:
    touching areas are joined first, so the size of a page or a message does not show. It is the BLAKE3 of
    `"sendense areas v1\0"`, the capacity, then (offset, length) of each joined area, then the number of
    areas, all numbers unsigned 64-bit little-endian.
    """

    def __init__(self, capacity: int) -> None:
        """Starts with no area.

        Args:
            capacity: the disk's size in bytes; it is part of the digest.
        """
        if not 0 <= capacity <= MAX_OFFSET:
            raise InvalidExtentError(0, capacity)
        self._capacity = capacity
        self._hash = blake3(_DIGEST_CONTEXT + capacity.to_bytes(8, "little"))
        self._packed = bytearray()
        self._count = 0
        self._start = -1
        self._end = 0
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes in all areas so far."""
        return self._total

    def add(self, extent: Extent) -> None:
        """Takes the next area in order.

        Raises:
            OverlappingExtentsError: it begins before the end of the one before.
            ExtentBeyondEndError: it ends after the capacity.
        """
        if extent.offset < self._end:
            raise OverlappingExtentsError(extent.offset, extent.length, self._end)
        if extent.end > self._capacity:
            raise ExtentBeyondEndError(extent.offset, extent.length, self._capacity)
        self._total += extent.length
        if extent.offset != self._end or self._start < 0:
            self._emit()
            self._start = extent.offset
        self._end = extent.end

    def update(self, extents: Iterable[Extent]) -> None:
        """Takes several areas in order."""
        for extent in extents:
            self.add(extent)

    def hexdigest(self) -> str:
        """Returns the digest of the areas so far, as 64 hexadecimal digits."""
        final = self._hash.copy()
        final.update(bytes(self._packed))
        count = self._count
        if self._start >= 0:
            final.update(_AREA.pack(self._start, self._end - self._start))
            count += 1
        final.update(count.to_bytes(8, "little"))
        return final.hexdigest()

    def _emit(self) -> None:
        if self._start < 0:
            return
        self._packed += _AREA.pack(self._start, self._end - self._start)
        self._count += 1
        if len(self._packed) >= _DIGEST_FLUSH_BYTES:
            self._hash.update(bytes(self._packed))
            self._packed.clear()


def areas_digest(extents: Iterable[Extent], capacity: int) -> str:
    """Returns the digest of a sorted area list, as `AreasDigest` defines it."""
    digest = AreasDigest(capacity)
    digest.update(extents)
    return digest.hexdigest()
