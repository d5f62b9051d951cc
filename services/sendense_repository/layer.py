"""Layers until they are sealed: filled with a journal, or dropped.

What always holds: a mutation is made under the layer's or the VM's lock, by the job that owns the layer, never by an
older attempt of it, and never into a root without its marker.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from sendense_blockio.errors import BlockIOError, EntryFormatError, JournalSequenceError, JournalWriteError
from sendense_blockio.extents import Extent, areas_digest, normalize, total
from sendense_blockio.extents import check as check_order
from sendense_blockio.journal import JournalWriter, decode_entries, read_journal
from sendense_repository import layout
from sendense_repository.areas import write_areas
from sendense_repository.errors import (
    AreasFixed,
    ForeignLayer,
    InvalidValue,
    JournalRefused,
    LayerBusy,
    LayerDamaged,
    LayerInUse,
    LayerNotFound,
    LayerPoisoned,
    LayerSealed,
    is_no_space,
)
from sendense_repository.image_lock import is_open_in_qemu
from sendense_repository.journals import OpenJournals, journal_header, remaining_areas
from sendense_repository.layer_files import remove_layer_files
from sendense_repository.locks import NamedLocks, layer_lock, vm_lock
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import Holder, LayerRecord, PlacedLayer
from sendense_repository.registry import Registry
from sendense_repository.store import Catalogue

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FixedAreas:
    """What is to be copied, summed up."""

    count: int
    total_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """How far a journal is."""

    last_sequence: int
    journaled_bytes: int


class LayerDesk:
    """Fills and drops layers."""

    def __init__(
        self,
        catalogue: Catalogue,
        registry: Registry,
        locks: NamedLocks,
        journals: OpenJournals,
        reconciler: Reconciler,
    ) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._journals = journals
        self._reconciler = reconciler

    async def open(self, holder: Holder, layer_id: str) -> PlacedLayer:
        """Returns a layer that this job may write to now.

        Raises:
            LayerNotFound: There is no such layer.
            ForeignLayer: It is another job's.
            LayerSealed: It is sealed.
            LayerPoisoned: It is unusable for good.
            LayerDamaged: Its image is gone.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            placed = await self._open_partial(holder, layer_id)
            files = placed.layer.files(placed.repository.path)
            if not await asyncio.to_thread(files.partial.exists):
                raise LayerDamaged(layer_id, f"its image {files.partial.name} is gone")
            return placed

    async def set_areas(self, holder: Holder, layer_id: str, areas: Iterable[Extent]) -> FixedAreas:
        """Fixes what is to be copied; the same areas again are no error.

        Raises:
            InvalidValue: Areas are not sorted, overlap, or go beyond the disk.
            AreasFixed: Other areas were fixed.
            NoRoom: What is to be copied does not fit; nothing was fixed.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            placed = await self._open_partial(holder, layer_id)
            layer = placed.layer
            try:
                canonical = normalize(check_order(areas, layer.virtual_size_bytes))
            except BlockIOError as error:
                raise InvalidValue("areas", str(error)) from error
            fixed = FixedAreas(len(canonical), total(canonical), areas_digest(canonical, layer.virtual_size_bytes))
            if layer.areas_digest and layer.areas_digest != fixed.digest:
                raise AreasFixed(layer_id, layer.areas_digest, fixed.digest)
            if not layer.areas_digest:
                await self._registry.require_room(placed.repository, fixed.total_bytes, layer_id=layer_id)
                try:
                    await asyncio.to_thread(_fix_areas, placed, canonical, fixed.digest)
                except (OSError, JournalWriteError) as error:
                    raise await self._write_failed(placed, error) from error
                await self._catalogue.layers.record_areas(layer_id, fixed.digest, fixed.count, fixed.total_bytes)
            return fixed

    async def remaining(self, layer_id: str) -> list[Extent]:
        """Returns what is still to be copied; nothing for a sealed layer.

        Raises:
            LayerNotFound: There is no such layer.
            AreasNotSet: No areas were fixed.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            placed = await self.find(layer_id)
            if placed.layer.state == "sealed":
                return []
            return await asyncio.to_thread(remaining_areas, placed.layer, placed.repository.path)

    async def position(self, layer_id: str) -> JournalPosition:
        """Returns how far an unsealed layer's journal is: where a copy that is resumed goes on.

        Raises:
            LayerNotFound: There is no such layer.
            LayerDamaged: The journal, or the area list, is not as written.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            placed = await self.find(layer_id)
            if placed.layer.state == "sealed" or placed.layer.poison or not placed.layer.areas_digest:
                return JournalPosition(0, 0)
            journal = await self._journals.get(placed.layer, placed.repository.path)
            return JournalPosition(journal.writer.last_sequence, journal.writer.covered_bytes)

    async def append(self, holder: Holder, layer_id: str, sequence: int, encoded: bytes) -> JournalPosition:
        """Commits a flushed batch: when this returns, it is on disk. The same batch again is accepted once.

        Raises:
            JournalRefused: It is not the next batch, or not one of this layer's.
            LayerPoisoned: It could not be written; the layer is lost.
            NoRoom: The file system is full; the layer is lost.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            placed = await self._open_partial(holder, layer_id)
            journal = await self._journals.get(placed.layer, placed.repository.path)
            last = journal.writer.last_sequence
            try:
                entries = decode_entries(encoded)
            except EntryFormatError as error:
                raise JournalRefused(layer_id, str(error), last) from error
            outside = journal.areas.first_outside(entries)
            if outside is not None:
                finding = f"the entry at {outside.offset}, length {outside.length}, is outside of the areas"
                raise JournalRefused(layer_id, finding, last)
            try:
                await asyncio.to_thread(journal.append, sequence, entries)
            except (JournalSequenceError, EntryFormatError) as error:
                raise JournalRefused(layer_id, str(error), last) from error
            except JournalWriteError as error:
                raise await self._write_failed(placed, error) from error
            return JournalPosition(journal.writer.last_sequence, journal.writer.covered_bytes)

    async def discard(self, holder: Holder, layer_id: str) -> None:
        """Removes a layer that no restore point holds; what is not there is no error.

        Raises:
            LayerInUse: A restore point holds it.
            LayerBusy: A qemu process has it open.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            await self._catalogue.fences.admit(holder)
            layer = await self._catalogue.layers.find(layer_id)
            if layer is None:
                return
            async with self._locks.hold(vm_lock(layer.repository_id, layer.vm_uuid)):
                await self._discard(holder, layer)

    async def _discard(self, holder: Holder, layer: LayerRecord) -> None:
        repository = await self._registry.use(layer.repository_id)
        await self._reconciler.reconcile_vm(repository, layer.vm_uuid)
        current = await self._catalogue.layers.find(layer.layer_id)
        if current is None:
            return
        _require_owner(current, holder)
        point = layout.point_file(repository.path, current.vm_uuid, current.backup_id)
        if current.point_id is not None or await asyncio.to_thread(_names_layer, point, current.layer_id):
            raise LayerInUse(current.layer_id, current.backup_id)
        files = current.files(repository.path)
        if await asyncio.to_thread(is_open_in_qemu, files.image):
            raise LayerBusy(current.layer_id)
        self._journals.close(current.layer_id)
        await asyncio.to_thread(remove_layer_files, files)
        await self._catalogue.layers.mark_deleted(current.layer_id)
        log.info("layer discarded", layer_id=current.layer_id, path=current.relative_path, job_id=holder.job_id)

    async def find(self, layer_id: str) -> PlacedLayer:
        """Returns a layer and its repository, whose root is there.

        Raises:
            LayerNotFound: There is no such layer.
            RepositoryUnusable: Its repository's root is missing or another's.
        """
        layer = await self._catalogue.layers.find(layer_id)
        if layer is None:
            raise LayerNotFound(layer_id)
        return PlacedLayer(layer, await self._registry.use(layer.repository_id))

    async def _open_partial(self, holder: Holder, layer_id: str) -> PlacedLayer:
        await self._catalogue.fences.admit(holder)
        placed = await self.find(layer_id)
        _require_owner(placed.layer, holder)
        if placed.layer.poison:
            raise LayerPoisoned(layer_id, placed.layer.poison)
        if placed.layer.state == "sealed":
            raise LayerSealed(layer_id)
        return placed

    async def _write_failed(self, placed: PlacedLayer, error: Exception) -> Exception:
        """Poisons a layer whose files could not be written, and returns what to raise."""
        layer = placed.layer
        self._journals.close(layer.layer_id)
        await self._catalogue.layers.poison(layer.layer_id, str(error))
        log.error("layer poisoned", layer_id=layer.layer_id, error=str(error))
        if is_no_space(error):
            return self._registry.no_room(placed.repository, layer.estimated_bytes)
        return LayerPoisoned(layer.layer_id, str(error))


def _require_owner(layer: LayerRecord, holder: Holder) -> None:
    if layer.backup_id != holder.job_id:
        raise ForeignLayer(layer.layer_id, layer.backup_id, holder.job_id)


def _names_layer(point: Path, layer_id: str) -> bool:
    """Tells whether a points file names a layer; it may be damaged, so its text is searched."""
    try:
        return layer_id in point.read_text(errors="replace")
    except FileNotFoundError:
        return False


def _fix_areas(placed: PlacedLayer, areas: Sequence[Extent], digest: str) -> None:
    """Writes area list and journal; from the journal on, the areas are fixed."""
    layer = placed.layer
    files = layer.files(placed.repository.path)
    if files.journal.exists():
        # A crash came between the journal and the row: the journal decides.
        fixed = read_journal(files.journal).header
        if dataclasses.replace(journal_header(layer, digest), areas_digest=fixed.areas_digest) != fixed:
            raise LayerDamaged(layer.layer_id, f"its journal {files.journal.name} is another layer's")
        if fixed.areas_digest != digest:
            raise AreasFixed(layer.layer_id, fixed.areas_digest, digest)
        return
    write_areas(files.areas, areas)
    JournalWriter.create(files.journal, journal_header(layer, digest)).close()
