"""Gives back what a qcow2 image takes on disk and nothing needs, without changing a byte that anybody reads.

qemu writes tables in whole clusters: a change of 64 KiB costs a cluster of data, and four of tables that are zero but
for a few bytes. On a large disk that is touched here and there tables take as much as the data. So zero blocks in them
become holes of the file, which read as the same zeroes. Clusters that nothing refers to become holes too, and what is
behind the last one is cut off: leaks that were repaired, and room that was taken ahead by a daemon that was killed.

Only before a layer is sealed. Where the file system has no holes nothing is gained and nothing is lost.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sendense_blockio.extents import Extent, intersect, merge
from sendense_repository.qcow2_metadata import REFCOUNT_BLOCK, Table, read_tables

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
"""`FALLOC_FL_*`, linux/falloc.h."""
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOSPC, errno.EPERM})
"""The file system cannot; or has no room to write down that it could, which is no reason to fail."""
_BLOCK = 4096
_ZEROES = bytes(_BLOCK)
_libc = ctypes.CDLL(None, use_errno=True)


def give_back_unused(path: Path, *, end: int | None, cluster_size: int) -> None:
    """Makes holes where a sound image needs none of its file; blocks for the disk. Again is no error.

    Args:
        path: The image: its header was judged, `qemu-img check` found nothing, nobody has it open.
        end: Where its last cluster in use ends, as `qemu-img check` says; None when it does not.
        cluster_size: Bytes of its clusters.

    Raises:
        MetadataError: Its tables lie outside of the file.
        OSError: It cannot be read or written.
    """
    unused = _unused(path, cluster_size)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        return  # it is read-only already: a seal that was interrupted came behind this step
    try:
        size = os.fstat(descriptor).st_size
        # Also to the size that it has: XFS keeps room behind a file's end, about 1 MiB, until it is asked.
        os.ftruncate(descriptor, size if end is None else min(size, end))
        for extent in unused:
            _punch(descriptor, extent)
    except OSError as error:
        if error.errno not in _NO_HOLES:
            raise
    finally:
        os.close(descriptor)


def _unused(path: Path, cluster_size: int) -> list[Extent]:
    """Returns blocks of tables that are zero, and clusters that nothing refers to."""
    size = path.stat().st_size
    found: list[Extent] = []
    with path.open("rb") as stream:
        for table in read_tables(path):
            found += _zero_blocks(table.offset, table.content)
            if table.kind == REFCOUNT_BLOCK:
                found += _free_clusters(table, cluster_size, size)
            end = table.offset + len(table.content)
            if rest := -end % cluster_size:
                # Behind an L1 table XFS may have given room that nobody wrote to.
                stream.seek(end)
                found += _zero_blocks(end, stream.read(rest))
    return intersect(merge(sorted(found)), [Extent(0, size)])


def _zero_blocks(offset: int, content: bytes) -> Iterator[Extent]:
    for position in range(-offset % _BLOCK, len(content) - _BLOCK + 1, _BLOCK):
        if content[position : position + _BLOCK] == _ZEROES:
            yield Extent(offset + position, _BLOCK)


def _free_clusters(table: Table, cluster_size: int, size: int) -> Iterator[Extent]:
    """Yields clusters of the file whose reference count (16 bits, big-endian: the header was judged) is 0."""
    counts = array.array("H", table.content)
    first = table.index * len(counts)
    counts = counts[: max(0, -(-size // cluster_size) - first)]
    if 0 in counts:
        for number, count in enumerate(counts, start=first):
            if not count:
                yield Extent(number * cluster_size, cluster_size)


def _punch(descriptor: int, extent: Extent) -> None:
    mode = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE)
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(extent.offset), ctypes.c_int64(extent.length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
