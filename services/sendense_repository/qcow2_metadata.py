r"""The digest of a qcow2 image's metadata: header, L1, L2 and refcount tables, byte by byte.

Taken when a layer is sealed, it later shows any flipped bit that decides where a guest's bytes are found, at the cost
of reading 1/8192 of the image and without asking qemu. The image's header must have passed `sendense_qemu.header`.

The digest is the BLAKE3 of `"sendense qcow2 metadata v1\0"`, then for each table its kind, its offset in the file and
its length (each unsigned 64-bit little-endian) and its bytes, in this order: kind 1 the first cluster, 2 the L1 table,
3 each L2 table in the order of the L1 table, 4 the refcount table, 5 each refcount block in the order of that table.

Beside it goes a short mark of each table (the first 8 bytes of its BLAKE3), in the same order. The digest proves, the
marks only say where: which table differs when the digest does not fit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

_CONTEXT = b"sendense qcow2 metadata v1\0"
_HEADER = struct.Struct(">4sIQIIQIIQQI")
_TABLE = struct.Struct("<QQQ")
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55 of an L1 or refcount table entry
_FIRST_CLUSTER, _L1, _L2, _REFCOUNT_TABLE, REFCOUNT_BLOCK = 1, 2, 3, 4, 5
_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MAX_TABLE_BYTES = 32 << 20
_MARK_BYTES = 8
_NAMES = {
    _FIRST_CLUSTER: "header",
    _L1: "L1 table",
    _L2: "L2 table",
    _REFCOUNT_TABLE: "refcount table",
    REFCOUNT_BLOCK: "refcount block",
}


class MetadataError(Exception):
    """The metadata contradicts itself; the message says where."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """An image's metadata, summed up.

    Attributes:
        digest: Of all tables, 64 hexadecimal digits.
        marks: 16 hexadecimal digits for each table, one after the other.
    """

    digest: str
    marks: str


@dataclass(frozen=True, slots=True)
class TableDamage:
    """A table that is not as it was sealed.

    Attributes:
        table: Its name, such as `L2 table`.
        file_offset: Where it lies in the file.
        file_length: Its bytes.
        disk_offset: First byte of the disk that it decides about.
        disk_length: How many it decides about; 0 for none, None for all from `disk_offset` on.
    """

    table: str
    file_offset: int
    file_length: int
    disk_offset: int = 0
    disk_length: int | None = None


def read_metadata(path: Path) -> Metadata:
    """Returns the digest and the marks of an image's metadata. Blocks while it reads the tables.

    Raises:
        MetadataError: A table lies outside of the file, or the file is no qcow2 image.
        OSError: The file cannot be read.
    """
    digest = blake3(_CONTEXT)
    marks = []
    for table in read_tables(path):
        digest.update(_TABLE.pack(table.kind, table.offset, len(table.content)))
        digest.update(table.content)
        marks.append(_mark(table.content))
    return Metadata(digest.hexdigest(), "".join(marks))


def metadata_digest(path: Path) -> str:
    """Returns the digest of an image's metadata; raises as `read_metadata`."""
    return read_metadata(path).digest


def damaged_tables(path: Path, marks: str) -> list[TableDamage]:
    """Returns the tables that differ from marks taken before; blocks while it reads.

    What a damaged table leads to is not looked at: behind a wrong header or L1 table nothing can be compared. Without
    marks, or when they show no difference, nothing is returned.

    Raises:
        OSError: The file cannot be read.
    """
    width = 2 * _MARK_BYTES
    expected = [marks[start : start + width] for start in range(0, len(marks), width)]
    found: list[TableDamage] = []
    try:
        for mark, table in zip(expected, read_tables(path), strict=False):
            if _mark(table.content) == mark:
                continue
            found.append(_damage(table))
            if table.kind in {_FIRST_CLUSTER, _L1, _REFCOUNT_TABLE}:
                break
    except MetadataError:
        # The table that leads outside of the file differs from its mark, unless there are no marks.
        return found
    return found


@dataclass(frozen=True, slots=True)
class Table:
    """One table at `offset` of the file; `index` counts the tables of its kind by their place in the table above."""

    kind: int
    offset: int
    content: bytes
    index: int = 0


def _damage(table: Table) -> TableDamage:
    length = len(table.content)
    name = _NAMES[table.kind]
    if table.kind in {_REFCOUNT_TABLE, REFCOUNT_BLOCK}:
        return TableDamage(name, table.offset, length, 0, 0)  # reading does not ask them
    if table.kind == _L2:
        covered = length // 8 * length  # one entry of 8 bytes for each cluster; a table is one cluster long
        return TableDamage(name, table.offset, length, table.index * covered, covered)
    return TableDamage(name, table.offset, length)


def _mark(content: bytes) -> str:
    return blake3(content).digest(_MARK_BYTES).hex()


def read_tables(path: Path) -> Iterator[Table]:
    """Yields an image's tables in the digest's order, one in memory at a time; raises as `read_metadata`."""
    with path.open("rb") as stream:
        yield from _tables(stream, os.fstat(stream.fileno()).st_size)


def _tables(stream: BinaryIO, size: int) -> Iterator[Table]:
    start = stream.read(_HEADER.size)
    if len(start) < _HEADER.size or start[:4] != b"QFI\xfb":
        raise MetadataError("it is no qcow2 image")
    _, _, _, _, bits, _, _, l1_entries, l1_offset, refcount_offset, refcount_clusters = _HEADER.unpack(start)
    if not _MIN_CLUSTER_BITS <= bits <= _MAX_CLUSTER_BITS:
        raise MetadataError(f"its clusters are 2^{bits} bytes")
    cluster = 1 << bits
    yield Table(_FIRST_CLUSTER, 0, _read(stream, size, 0, min(cluster, size), "first cluster", cluster))
    l1 = _read(stream, size, l1_offset, l1_entries * 8, "L1 table", cluster)
    yield Table(_L1, l1_offset, l1)
    for index, offset in _entries(l1):
        yield Table(_L2, offset, _read(stream, size, offset, cluster, "L2 table", cluster), index)
    table = _read(stream, size, refcount_offset, refcount_clusters * cluster, "refcount table", cluster)
    yield Table(_REFCOUNT_TABLE, refcount_offset, table)
    for index, offset in _entries(table):
        yield Table(REFCOUNT_BLOCK, offset, _read(stream, size, offset, cluster, "refcount block", cluster), index)


def _entries(table: bytes) -> Iterator[tuple[int, int]]:
    for index, (entry,) in enumerate(struct.iter_unpack(">Q", table)):
        if entry & _OFFSET_MASK:
            yield index, entry & _OFFSET_MASK


def _read(stream: BinaryIO, size: int, offset: int, length: int, what: str, cluster: int) -> bytes:
    if offset % cluster or length > _MAX_TABLE_BYTES or offset >= size:
        raise MetadataError(f"the {what} is said to be at {offset} with {length} bytes; the file has {size}")
    stream.seek(offset)
    content = stream.read(length)
    # qemu may leave the end of the file's last cluster unwritten: it reads as zeroes.
    if len(content) < length:
        if offset + length > -(-size // cluster) * cluster:
            raise MetadataError(f"the {what} at {offset} ends behind the file's end at {size}")
        content = content.ljust(length, b"\0")
    return content
