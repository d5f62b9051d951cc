"""Reads guest bytes straight from the files of a chain, where `qemu-img map` says that they lie: no daemon, no copy.

Only for images whose headers were judged (`sendense_qemu.header`): plain clusters, no compression, no encryption.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sendense_blockio.extents import Extent, merge
from sendense_qemu.img import MapExtent

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_ALIGNMENT = 4096
"""No file system asks more of direct reads."""


class UnreadableData(Exception):
    """The map names data at no place, or no file."""


class ImageData:
    """What a guest would read from an image with its chain; a context manager, usable from several threads.

    Args:
        allocation: The image's map, from offset 0 to the virtual size.
        files: The image and the layers below it, by depth.
    """

    def __init__(self, allocation: Sequence[MapExtent], files: Sequence[Path]) -> None:
        self._allocation = allocation
        self._starts = [each.start for each in allocation]
        self._descriptors: list[int] = []
        self._direct: list[int] = []
        try:
            for path in files:
                self._descriptors.append(os.open(path, _FLAGS))
                direct = _open_direct(path)
                if direct is not None:
                    self._direct.append(direct)
        except BaseException:
            self.close()
            raise

    def read(self, extent: Extent) -> bytes:
        """Returns the bytes of an extent; what nothing gives is zero.

        Raises:
            UnreadableData: The map is not one of plain images.
            OSError: A file cannot be read.
        """
        parts = []
        for run, begin, end in self._runs(extent):
            length = end - begin
            if run.zero or not run.data:
                parts.append(bytes(length))
                continue
            descriptor, offset = self._place(run, begin)
            parts.append(self._from_file(descriptor, offset, length))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, extent: Extent, buffer: memoryview) -> memoryview:
        """Reads an extent into a buffer that is at least as long, and returns the filled part of it.

        Past the page cache where buffer, offsets and lengths allow: what was just written past it is read once, into
        pages that are there already; fresh ones cost more than the reading.

        Raises:
            UnreadableData: The map is not one of plain images.
            OSError: A file cannot be read.
        """
        for run, begin, end in self._runs(extent):
            part = buffer[begin - extent.offset : end - extent.offset]
            if run.zero or not run.data:
                part[:] = bytes(len(part))
                continue
            descriptor, offset = self._place(run, begin)
            aligned = not (offset | len(part) | (begin - extent.offset)) % _ALIGNMENT
            if aligned and len(self._direct) == len(self._descriptors):
                descriptor = self._direct[run.depth]
            if os.preadv(descriptor, [part], offset) != len(part):
                part[:] = self._from_file(self._descriptors[run.depth], offset, len(part))
        return buffer[: extent.length]

    def _place(self, run: MapExtent, begin: int) -> tuple[int, int]:
        if run.offset is None or run.depth >= len(self._descriptors):
            raise UnreadableData(f"the data at {begin} lies at no known place of layer {run.depth}")
        return self._descriptors[run.depth], run.offset + begin - run.start

    def zeroes_in(self, extent: Extent) -> list[Extent]:
        """Returns the parts of an extent that are no data, in order."""
        return merge(Extent(begin, end - begin) for run, begin, end in self._runs(extent) if run.zero or not run.data)

    def _runs(self, extent: Extent) -> Iterator[tuple[MapExtent, int, int]]:
        index = bisect_right(self._starts, extent.offset) - 1
        position = extent.offset
        while position < extent.end:
            run = self._allocation[index] if 0 <= index < len(self._allocation) else None
            if run is None or position >= run.start + run.length:
                raise UnreadableData(f"the map ends before {extent.end}")
            end = min(extent.end, run.start + run.length)
            yield run, position, end
            position = end
            index += 1

    @staticmethod
    def _from_file(descriptor: int, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(descriptor, length, offset)
            if not part:
                # qemu may leave the end of the file's last cluster unwritten: it reads as zeroes.
                parts.append(bytes(length))
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes the files."""
        for descriptors in (self._descriptors, self._direct):
            while descriptors:
                os.close(descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_direct(path: Path) -> int | None:
    try:
        return os.open(path, _FLAGS | os.O_DIRECT)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
            return None
        raise


def same_places(one: Sequence[MapExtent], other: Sequence[MapExtent]) -> list[Extent]:
    """Returns where two images hold, each by itself, data at the same places of their files.

    When one file began as a clone of the other and both are sound, these are bytes that they share.
    """
    found: list[Extent] = []
    left, right = _own_data(one), _own_data(other)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        begin, end = max(a[0], b[0]), min(a[1], b[1])
        if begin < end and a[2] == b[2]:
            found.append(Extent(begin, end - begin))
        if a[1] <= b[1]:
            a = next(left, None)
        else:
            b = next(right, None)
    return merge(found)


def _own_data(allocation: Sequence[MapExtent]) -> Iterator[tuple[int, int, int]]:
    """Yields begin, end and place less begin of each run that an image holds itself."""
    for run in allocation:
        if run.depth == 0 and run.data and not run.zero and run.offset is not None:
            yield run.start, run.start + run.length, run.offset - run.start
