r"""The digest of a qcow2 image's metadata: header, L1, L2 and refcount tables, byte by byte.

Taken when a layer is sealed, it later shows any flipped bit that decides where a guest's bytes are found, at the cost
of reading 1/8192 of the image and without asking qemu. The image's header must have passed `sendense_qemu.header`.

The digest is the BLAKE3 of `"sendense qcow2 metadata v1\0"`, then for each table its kind, its offset in the file and
its length (each unsigned 64-bit little-endian) and its bytes, in this order: kind 1 the first cluster, 2 the L1 table,
3 each L2 table in the order of the L1 table, 4 the refcount table, 5 each refcount block in the order of that table.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

_CONTEXT = b"sendense qcow2 metadata v1\0"
_HEADER = struct.Struct(">4sIQIIQIIQQI")
_TABLE = struct.Struct("<QQQ")
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55 of an L1 or refcount table entry
_FIRST_CLUSTER, _L1, _L2, _REFCOUNT_TABLE, _REFCOUNT_BLOCK = 1, 2, 3, 4, 5
_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MAX_TABLE_BYTES = 32 << 20


class MetadataError(Exception):
    """The metadata contradicts itself; the message says where."""


def metadata_digest(path: Path) -> str:
    """Returns the digest of an image's metadata. Blocks while it reads the tables.

    Raises:
        MetadataError: A table lies outside of the file, or the file is no qcow2 image.
        OSError: The file cannot be read.
    """
    digest = blake3(_CONTEXT)
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        for kind, offset, content in _tables(stream, size):
            digest.update(_TABLE.pack(kind, offset, len(content)))
            digest.update(content)
    return digest.hexdigest()


def _tables(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    start = stream.read(_HEADER.size)
    if len(start) < _HEADER.size or start[:4] != b"QFI\xfb":
        raise MetadataError("it is no qcow2 image")
    _, _, _, _, bits, _, _, l1_entries, l1_offset, refcount_offset, refcount_clusters = _HEADER.unpack(start)
    if not _MIN_CLUSTER_BITS <= bits <= _MAX_CLUSTER_BITS:
        raise MetadataError(f"its clusters are 2^{bits} bytes")
    cluster = 1 << bits
    yield _FIRST_CLUSTER, 0, _read(stream, size, 0, min(cluster, size), "first cluster", cluster)
    l1 = _read(stream, size, l1_offset, l1_entries * 8, "L1 table", cluster)
    yield _L1, l1_offset, l1
    for offset in _entries(l1):
        yield _L2, offset, _read(stream, size, offset, cluster, "L2 table", cluster)
    table = _read(stream, size, refcount_offset, refcount_clusters * cluster, "refcount table", cluster)
    yield _REFCOUNT_TABLE, refcount_offset, table
    for offset in _entries(table):
        yield _REFCOUNT_BLOCK, offset, _read(stream, size, offset, cluster, "refcount block", cluster)


def _entries(table: bytes) -> Iterator[int]:
    for (entry,) in struct.iter_unpack(">Q", table):
        if entry & _OFFSET_MASK:
            yield entry & _OFFSET_MASK


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
