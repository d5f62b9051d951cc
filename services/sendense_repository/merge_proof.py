"""Proves that a merged image gives what the untouched chain gives, and writes down its manifest.

Each entry of the old manifests that still shows is read back from the merged image and compared with the BLAKE3 that
was taken when the disk was captured, so damage in a layer is found here and never gets a new digest. Of an entry that
is partly covered the whole is read from its own layer, which must fit its digest, and the part that shows is compared
with the merged image. Bytes of clusters that no entry names are compared with the chain. What a clone shares with its
original, at the same place of the file and never written, is not read again.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from sendense_blockio.errors import CopyCancelledError
from sendense_blockio.extents import Extent, align, split, subtract
from sendense_blockio.journal import Entry
from sendense_qemu.img import MapExtent
from sendense_repository.image_data import ImageData, same_places
from sendense_repository.layout import CLUSTER_SIZE
from sendense_repository.merged_manifest import MergedManifest, Visible

Item = TypeVar("Item")

_SLICE = 64
_PIECE = 1 << 20
_READERS = max(2, min(4, os.cpu_count() or 2))


class MergeDiffers(Exception):
    """The merged image does not give what the chain gives; it must be thrown away.

    Attributes:
        offset: First byte of the range that differs.
        length: Its bytes.
    """

    def __init__(self, extent: Extent) -> None:
        super().__init__(f"{extent.length} bytes at offset {extent.offset} differ from the untouched chain")
        self.offset = extent.offset
        self.length = extent.length


class SourceDamaged(Exception):
    """A layer that was to be merged does not fit its own manifest.

    Attributes:
        depth: Which layer: 0 for the one that receives the others.
        offset: First byte of the entry that does not fit.
        length: Its bytes.
    """

    def __init__(self, depth: int, entry: Entry) -> None:
        super().__init__(f"{entry.length} bytes at offset {entry.offset} are not what was backed up")
        self.depth = depth
        self.offset = entry.offset
        self.length = entry.length


@dataclass(frozen=True, slots=True)
class MappedImage:
    """An image with its chain as `qemu-img map` shows it: files by depth."""

    allocation: Sequence[MapExtent]
    files: Sequence[Path]

    def open(self) -> ImageData:
        """Opens its files for reading."""
        return ImageData(self.allocation, self.files)


def prove_merge(
    manifest: MergedManifest,
    merged: MappedImage,
    layers: Sequence[MappedImage],
    *,
    cloned: bool,
    virtual_size: int,
    cancel: threading.Event,
) -> list[Entry]:
    """Proves a merged image and returns its own manifest, in order; blocks while it reads.

    Args:
        manifest: What the merge consists of.
        merged: The merged image with the layers below it.
        layers: The merged layers from the top one down, each with all layers below it.
        cloned: Whether the merged image began as a clone of the lowest one.
        virtual_size: Bytes of the disk.
        cancel: Set by anybody to end it.

    Raises:
        MergeDiffers: The merged image is wrong.
        SourceDamaged: A layer is.
        CopyCancelledError: `cancel` was set.
    """
    copied = align(manifest.upper_areas, CLUSTER_SIZE, virtual_size)
    untouched = subtract(same_places(layers[-1].allocation, merged.allocation), copied) if cloned else []
    lowest = len(layers) - 1
    with ExitStack() as stack:
        target = stack.enter_context(merged.open())
        sources = [stack.enter_context(layer.open()) for layer in layers]
        prover = _Prover(target, sources)
        pending, shared = _partition(manifest.visible, untouched, lowest)
        pool = stack.enter_context(ThreadPoolExecutor(_READERS, "merge-proof"))
        try:
            _each(pool, prover.unnamed, _unnamed(manifest, virtual_size), cancel)
            proven = _each(pool, prover.entries, pending, cancel)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    entries = itertools.chain(shared, *proven)
    return sorted(entries, key=lambda entry: entry.offset)


def _each(
    pool: ThreadPoolExecutor,
    work: Callable[[Sequence[Item]], list[Entry]],
    items: Sequence[Item],
    cancel: threading.Event,
) -> list[list[Entry]]:
    """Works through items in slices, several at a time."""

    def one(start: int) -> list[Entry]:
        if cancel.is_set():
            raise CopyCancelledError("the merge was cancelled")
        return work(items[start : start + _SLICE])

    return list(pool.map(one, range(0, len(items), _SLICE)))


class _Prover:
    """Compares; `sources` by depth."""

    def __init__(self, target: ImageData, sources: Sequence[ImageData]) -> None:
        self._target = target
        self._sources = sources
        self._local = threading.local()

    def _buffer(self, length: int) -> memoryview:
        """Returns this thread's buffer, aligned to pages and at least so long; the next call overwrites it."""
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = mmap.mmap(-1, max(length, _PIECE))
        return memoryview(buffer)

    def unnamed(self, extents: Sequence[Extent]) -> list[Entry]:
        """Compares bytes that no entry names with the chain."""
        for extent in extents:
            if self._target.read(extent) != self._sources[0].read(extent):
                raise MergeDiffers(extent)
        return []

    def entries(self, visible: Sequence[Visible]) -> list[Entry]:
        """Compares entries and returns those of the merged image."""
        found: list[Entry] = []
        for each in visible:
            if each.entry.is_zero:
                found += self._zero(each)
            elif each.is_whole:
                found += self._whole(each)
            else:
                found += self._partly(each)
        return found

    def _zero(self, visible: Visible) -> Iterator[Entry]:
        for piece in visible.pieces:
            # Zeroes may be one entry for the whole disk: only what is stored as data is read.
            for stored in split(subtract([piece], self._target.zeroes_in(piece)), _PIECE):
                if any(self._target.read(stored)):
                    raise MergeDiffers(stored)
            yield Entry(piece.offset, piece.length, None)

    def _whole(self, visible: Visible) -> Iterator[Entry]:
        entry = visible.entry
        whole = Extent(entry.offset, entry.length)
        content = self._target.read_into(whole, self._buffer(entry.length))
        if blake3(content).digest() != entry.digest:
            self._require_sound(visible)
            raise MergeDiffers(whole)
        return self._described(whole, content, entry.digest)

    def _partly(self, visible: Visible) -> Iterator[Entry]:
        entry = visible.entry
        original = self._require_sound(visible)
        for piece in visible.pieces:
            start = piece.offset - entry.offset
            content = self._target.read(piece)
            if content != original[start : start + piece.length]:
                raise MergeDiffers(piece)
            yield from self._described(piece, content, None)

    def _require_sound(self, visible: Visible) -> bytes:
        """Returns an entry's bytes as its own layer gives them, which fit its digest."""
        entry = visible.entry
        content = self._sources[visible.depth].read(Extent(entry.offset, entry.length))
        if blake3(content).digest() != entry.digest:
            raise SourceDamaged(visible.depth, entry)
        return content

    def _described(self, extent: Extent, content: bytes | memoryview, digest: bytes | None) -> Iterator[Entry]:
        """Yields the entries of an extent: where the image keeps zeroes as such, the manifest must say so."""
        zeroes = self._target.zeroes_in(extent)
        if not zeroes:
            yield Entry(extent.offset, extent.length, digest or blake3(content).digest())
            return
        for data in subtract([extent], zeroes):
            start = data.offset - extent.offset
            yield Entry(data.offset, data.length, blake3(content[start : start + data.length]).digest())
        for zero in zeroes:
            yield Entry(zero.offset, zero.length, None)


def _partition(
    visible: Sequence[Visible], untouched: Sequence[Extent], lowest: int
) -> tuple[list[Visible], list[Entry]]:
    """Returns what must be read, and the entries that lie wholly in what was never written."""
    pending: list[Visible] = []
    shared: list[Entry] = []
    index = 0
    for each in visible:
        if each.depth != lowest or each.entry.is_zero or not each.is_whole:
            pending.append(each)
            continue
        while index < len(untouched) and untouched[index].end <= each.entry.offset:
            index += 1
        inside = index < len(untouched) and untouched[index].offset <= each.entry.offset
        if inside and each.entry.end <= untouched[index].end:
            shared.append(each.entry)
        else:
            pending.append(each)
    return pending, shared


def _unnamed(manifest: MergedManifest, virtual_size: int) -> list[Extent]:
    """Returns the bytes of the merged layer's clusters that no entry names."""
    return list(split(subtract(align(manifest.areas, CLUSTER_SIZE, virtual_size), manifest.areas), _PIECE))
