"""The files of a disk: a raw base, and for each open snapshot a sparse delta above it, as VMware's redo logs.

A delta has the size of the disk and holds its areas at their own offsets, so creating, writing and merging one is a
matter of milliseconds and needs no program. Which areas it holds is in the VM's record, not in the file.
Nothing here is synchronised to the platter: the lab survives a killed server, not a power cut, and is quick.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sendense_lab.areas import Area, intersect, merge, subtract
from sendense_lab.records import Layer

COPY_CHUNK = 1024 * 1024


def create(path: Path, capacity: int) -> None:
    """Creates an empty base or delta; what a killed server left under that name is overwritten."""
    with path.open("wb") as file:
        file.truncate(capacity)


def data_areas(directory: Path, chain: Sequence[Layer]) -> tuple[Area, ...]:
    """Returns the areas that hold data as seen at the top of a chain (base first)."""
    found: list[Area] = []
    for layer in chain:
        if layer.parent is None:
            with (directory / layer.file).open("rb") as file:
                found += _data(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        else:
            found += layer.areas
    return merge(found)


def export(directory: Path, chain: Sequence[Layer], output: Path) -> None:
    """Writes the disk's content at the top of a chain (base first) to a sparse raw file."""
    base, *deltas = chain
    copy_sparse(directory / base.file, output)
    for delta in deltas:
        copy_areas(directory / delta.file, output, delta.areas)


def copy_view(directory: Path, chain: Sequence[Layer], target: Path, areas: Iterable[Area]) -> None:
    """Copies areas of the disk as seen at the top of a chain into another file of its size."""
    wanted = merge(areas)
    for layer in reversed(chain):
        here = wanted if layer.parent is None else intersect(wanted, layer.areas)
        copy_areas(directory / layer.file, target, here)
        wanted = subtract(wanted, here)


def copy_sparse(source: Path, target: Path) -> None:
    """Copies a raw file, leaving its holes holes."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        for start, end in _data(reader.fileno(), 0, size):
            _copy_range(reader.fileno(), writer.fileno(), start, end)


def copy_areas(source: Path, target: Path, areas: Iterable[Area]) -> None:
    """Copies these areas of a raw file to the same offsets of another, which is made when it is missing."""
    with source.open("rb") as reader, os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as writer:
        size = os.fstat(reader.fileno()).st_size
        if os.fstat(writer.fileno()).st_size < size:
            writer.truncate(size)
        for start, end in areas:
            _copy_range(reader.fileno(), writer.fileno(), start, min(end, size))


def write(path: Path, offset: int, chunks: Iterable[bytes]) -> None:
    """Writes bytes at an offset."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for chunk in chunks:
            offset += os.pwrite(descriptor, chunk, offset)
    finally:
        os.close(descriptor)


def zeros(length: int) -> Iterator[bytes]:
    """Yields that many zero bytes in pieces."""
    piece = bytes(min(length, COPY_CHUNK))
    while length > 0:
        yield piece[:length]
        length -= len(piece)


def _data(descriptor: int, start: int, size: int) -> Iterator[Area]:
    """Yields what of a file is no hole."""
    while start < size:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
        start = end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    if start >= end:
        return
    buffer = memoryview(bytearray(min(COPY_CHUNK, end - start)))
    position = start
    while position < end:
        got = os.preadv(source, [buffer[: min(len(buffer), end - position)]], position)
        if got == 0:  # the source is shorter than the disk: the rest is zeros
            return
        written = 0
        while written < got:
            written += os.pwrite(target, buffer[written:got], position + written)
        position += got
