"""Journal entries: what was copied, as (offset, length, BLAKE3 or zero), their encoding, and what they cover.

An entry without a digest says that all its bytes are zero. Encoded, an entry is its offset and length
(unsigned 64-bit little-endian), a kind byte (0 zero, 1 BLAKE3) and, for kind 1, the 32 bytes of the digest; a
batch is the plain sequence of its entries. The same bytes travel in gRPC messages and stand in the journal
file.

Signatures:

    Entry(offset: int, length: int, digest: bytes | None)     .end .is_zero
    encode_entries(entries) -> bytes
    decode_entries(data) -> list[Entry]
    entry_extents(entries) -> list[Extent]        (canonical; overlaps raise)
    coverage(entries, areas) -> Coverage          .exact .missing .surplus
    covers_exactly(entries, areas) -> bool
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sendense_blockio.errors import EntryFormatError
from sendense_blockio.extents import MAX_OFFSET, Extent, normalize, subtract

DIGEST_BYTES = 32
"""Length of a BLAKE3 digest."""

_FIXED = struct.Struct("<QQB")
_KIND_ZERO = 0
_KIND_BLAKE3 = 1


class Entry(NamedTuple):
    """One copied extent; a tuple, because a disk has millions.

    Attributes:
        offset: first byte.
        length: bytes, at least 1.
        digest: BLAKE3 of the bytes, 32 bytes; None when all are zero.
    """

    offset: int
    length: int
    digest: bytes | None

    @property
    def end(self) -> int:
        """The first byte after the entry."""
        return self.offset + self.length

    @property
    def is_zero(self) -> bool:
        """Whether the entry stands for zeroes."""
        return self.digest is None


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """Encodes a batch.

    Raises:
        EntryFormatError: an entry is no valid extent, or its digest is not 32 bytes.
    """
    encoded = bytearray()
    for offset, length, digest in entries:
        if offset < 0 or length < 1 or offset + length > MAX_OFFSET:
            raise EntryFormatError(f"no entry can have offset {offset} and length {length}", len(encoded))
        if digest is None:
            encoded += _FIXED.pack(offset, length, _KIND_ZERO)
            continue
        if len(digest) != DIGEST_BYTES:
            raise EntryFormatError(f"a digest has {len(digest)} bytes, not {DIGEST_BYTES}", len(encoded))
        encoded += _FIXED.pack(offset, length, _KIND_BLAKE3)
        encoded += digest
    return bytes(encoded)


def decode_entries(data: bytes) -> list[Entry]:
    """Decodes a batch.

    Raises:
        EntryFormatError: the bytes end within an entry, a kind is unknown, or an entry is no valid extent.
    """
    entries = []
    position, size = 0, len(data)
    while position < size:
        if size - position < _FIXED.size:
            raise EntryFormatError("the bytes end within an entry", position)
        offset, length, kind = _FIXED.unpack_from(data, position)
        if length < 1 or offset + length > MAX_OFFSET:
            raise EntryFormatError(f"no entry can have offset {offset} and length {length}", position)
        following = position + _FIXED.size
        digest: bytes | None = None
        if kind == _KIND_BLAKE3:
            digest = data[following : following + DIGEST_BYTES]
            following += DIGEST_BYTES
            if following > size:
                raise EntryFormatError("the bytes end within a digest", position)
        elif kind != _KIND_ZERO:
            raise EntryFormatError(f"the kind {kind} is unknown", position)
        entries.append(Entry(offset, length, digest))
        position = following
    return entries


def entry_extents(entries: Iterable[Entry]) -> list[Extent]:
    """Returns the canonical extents that entries (in any order) cover.

    Raises:
        OverlappingExtentsError: two entries share a byte.
    """
    return normalize(Extent(entry.offset, entry.length) for entry in entries)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How entries compare with an area list.

    Attributes:
        missing: extents of the areas that no entry covers.
        surplus: extents that entries cover outside the areas.
    """

    missing: Sequence[Extent]
    surplus: Sequence[Extent]

    @property
    def exact(self) -> bool:
        """Whether every byte of the areas is covered once, and no other byte."""
        return not self.missing and not self.surplus


def coverage(entries: Iterable[Entry], areas: Sequence[Extent]) -> Coverage:
    """Compares entries (in any order) with areas (sorted).

    Raises:
        OverlappingExtentsError: two entries share a byte, or the areas overlap.
    """
    covered = entry_extents(entries)
    return Coverage(missing=subtract(areas, covered), surplus=subtract(covered, areas))


def covers_exactly(entries: Iterable[Entry], areas: Sequence[Extent]) -> bool:
    """Tells whether entries cover each byte of the areas once, and no other byte.

    Raises:
        OverlappingExtentsError: two entries share a byte, or the areas overlap.
    """
    return coverage(entries, areas).exact
