"""Audits of change tracking: what a backup did not copy, as its chain gives it; and marks for points that may be wrong.

A block that change tracking calls unchanged must be in the snapshot what the chain gives. The caller compares; this
module chooses the blocks, reads the chain straight from its files, and, when a block differs, marks every restore point
from the layer's parent back to the layer that last wrote the block, that one too: nobody knows when it began to differ,
or whether it was ever right. A mark stays with its layer and says nothing of the layer's bytes, which are as written.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path

import structlog
from blake3 import blake3

from sendense_blockio.extents import Extent
from sendense_blockio.journal import entry_extents, read_journal
from sendense_qemu import img
from sendense_qemu.img import MapExtent
from sendense_repository.audit_sample import SampleSize, choose_blocks
from sendense_repository.doubts import doubt_layers
from sendense_repository.errors import LayerNotSealed
from sendense_repository.image_data import ImageData
from sendense_repository.journals import journal_header
from sendense_repository.layer import LayerDesk
from sendense_repository.locks import NamedLocks, vm_lock
from sendense_repository.parentage import ancestry, require_sound_chain
from sendense_repository.records import Holder, LayerRecord, PlacedLayer
from sendense_repository.store import Catalogue

log = structlog.get_logger()

PAGE_BLOCKS = 1000
"""Blocks that are read, digested and sent at once: 64 MiB of the disk."""

Sample = tuple[Extent, bytes]
"""A block and the BLAKE3 of what the chain gives for it."""


class AuditDesk:
    """Samples layers and marks points."""

    def __init__(self, catalogue: Catalogue, layers: LayerDesk, locks: NamedLocks) -> None:
        self._catalogue = catalogue
        self._layers = layers
        self._locks = locks

    async def sample(
        self, layer_id: str, *, blocks: int, share: float, slices: int, seed: int
    ) -> AsyncIterator[list[Sample]]:
        """Yields blocks that the layer's backup did not copy, with what the chain gives, in pages.

        Args:
            layer_id: A sealed layer.
            blocks: At least so many by chance.
            share: At least this share of the candidates by chance.
            slices: Slices of the disk, of which one is taken whole; another one with each restore point of the VM.
            seed: Chooses by chance.

        Raises:
            LayerNotFound: There is no such layer.
            LayerNotSealed: Somebody still writes it.
            LayerDamaged: It, or one below it, is not as it was sealed.
        """
        placed = await self._sealed(layer_id)
        layer = placed.layer
        turn = await self._catalogue.points.last_sequence(layer.repository_id, layer.vm_uuid)
        copied = await asyncio.to_thread(_copied, placed)
        size = SampleSize(blocks, share, slices, turn)
        chosen = choose_blocks(copied, layer.virtual_size_bytes, size, seed)
        async with AsyncExitStack() as stack:
            allocation, files = await self._mapped(placed)
            data = stack.enter_context(ImageData(allocation, files))
            while page := await asyncio.to_thread(lambda: list(islice(chosen, PAGE_BLOCKS))):
                yield await asyncio.to_thread(_digests, data, page)

    async def mark_suspect(self, holder: Holder, layer_id: str, areas: Iterable[Extent], finding: str) -> list[str]:
        """Marks the points that may be wrong because areas of a sealed layer's disk are not what its chain gives.

        Returns:
            The marked points, newest first; none for a full.

        Raises:
            LayerNotFound: There is no such layer.
            LayerNotSealed: Somebody still writes it.
            StaleAttempt: A newer attempt of the job was seen.
        """
        await self._catalogue.fences.admit(holder)
        placed = await self._sealed(layer_id)
        chain = await self._chain(placed.layer)
        allocation, _ = await self._mapped(placed)
        depth = _writers_depth(allocation, list(areas), len(chain))
        doubtful = [layer for layer in chain[1 : depth + 1] if layer.point_id]
        root = placed.repository.path
        async with self._locks.hold(vm_lock(placed.layer.repository_id, placed.layer.vm_uuid)):
            await doubt_layers(self._catalogue, root, doubtful, finding)
        points = [str(layer.point_id) for layer in doubtful]
        log.error("restore points are suspect", layer_id=layer_id, points=points, finding=finding)
        return points

    async def _sealed(self, layer_id: str) -> PlacedLayer:
        placed = await self._layers.find(layer_id)
        if placed.layer.state != "sealed":
            raise LayerNotSealed(layer_id)
        return placed

    async def _chain(self, layer: LayerRecord) -> list[LayerRecord]:
        of_vm = await self._catalogue.layers.of_vm(layer.repository_id, layer.vm_uuid)
        return ancestry(layer, {each.layer_id: each for each in of_vm})

    async def _mapped(self, placed: PlacedLayer) -> tuple[Sequence[MapExtent], list[Path]]:
        """Returns the image's map and the files that it speaks of; no merge swaps one in between."""
        layer, root = placed.layer, placed.repository.path
        async with self._locks.hold(vm_lock(layer.repository_id, layer.vm_uuid)):
            chain = await self._chain(layer)
            files = [each.files(root).sealed for each in chain]
            await require_sound_chain(files[0], chain)
            return await img.map_depths(files[0], "qcow2"), files


def _copied(placed: PlacedLayer) -> list[Extent]:
    layer = placed.layer
    journal = read_journal(layer.files(placed.repository.path).journal, journal_header(layer, layer.areas_digest))
    return entry_extents(journal.entries)


def _digests(data: ImageData, page: Sequence[Extent]) -> list[Sample]:
    return [(block, blake3(data.read(block)).digest()) for block in page]


def _writers_depth(allocation: Sequence[MapExtent], areas: Sequence[Extent], length: int) -> int:
    """Returns the depth of the deepest layer that last wrote one of some areas; for what nobody wrote, the full's."""
    starts = [run.start for run in allocation]
    deepest = 0
    for area in areas:
        for run in islice(allocation, bisect_right(starts, area.offset) - 1, bisect_left(starts, area.end)):
            deepest = max(deepest, run.depth if run.present else length - 1)
    return deepest
