"""Layers until they are sealed: made, filled with a journal, or dropped.

What always holds: a mutation is made under the layer's or the VM's lock, by the job that owns the layer, never by an
older attempt of it, and never into a root without its marker.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from sendense_blockio.errors import BlockIOError, EntryFormatError, JournalSequenceError, JournalWriteError
from sendense_blockio.extents import Extent, areas_digest, normalize, total
from sendense_blockio.extents import check as check_order
from sendense_blockio.journal import JournalWriter, decode_entries, read_journal
from sendense_db.columns import utc_now
from sendense_qemu import img
from sendense_qemu.errors import QemuImgError
from sendense_qemu.header import MAX_VIRTUAL_SIZE
from sendense_repository import disks, durable, layout
from sendense_repository.areas import write_areas
from sendense_repository.errors import (
    AreasFixed,
    ForeignLayer,
    InvalidValue,
    JournalRefused,
    LayerBusy,
    LayerDamaged,
    LayerInUse,
    LayerMismatch,
    LayerNotFound,
    LayerPoisoned,
    LayerSealed,
    is_no_space,
)
from sendense_repository.image_lock import is_open_in_qemu
from sendense_repository.journals import OpenJournals, journal_header, remaining_areas
from sendense_repository.layer_files import remove_layer_files
from sendense_repository.locks import NamedLocks
from sendense_repository.parentage import (
    ancestry,
    require_as_sealed,
    require_latest,
    require_same_size,
    require_sound_chain,
)
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import Holder, LayerRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.store import Catalogue

log = structlog.get_logger()

_SECTOR = 512


@dataclass(frozen=True, slots=True)
class NewLayer:
    """What a job wants a layer for; sizes in bytes. An empty `parent_layer_id` makes a full."""

    repository: str
    vm_uuid: str
    disk_identity: str
    virtual_size_bytes: int
    parent_layer_id: str
    change_id: str
    estimated_bytes: int


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


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer with the repository that it lies in."""

    layer: LayerRecord
    repository: RepositoryRecord


def vm_lock(repository_id: str, vm_uuid: str) -> str:
    """Returns the name of a VM's lock."""
    return f"vm {repository_id} {vm_uuid}"


def layer_lock(layer_id: str) -> str:
    """Returns the name of a layer's lock."""
    return f"layer {layer_id}"


class LayerDesk:
    """Makes, fills and drops layers."""

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

    async def create(self, holder: Holder, wanted: NewLayer) -> PlacedLayer:
        """Makes a partial layer, or returns the one that the job has for this disk.

        Raises:
            StaleParent: The parent is not the disk's layer in the VM's latest restore point.
            NoRoom: It does not fit.
            LayerMismatch: The job has a layer for this disk that was made for something else.
            LayerDamaged: The parent, or the job's layer, is not what it must be.
        """
        layout.check_vm_uuid(wanted.vm_uuid)
        layout.check_backup_id(holder.job_id)
        _check_size(wanted.virtual_size_bytes)
        repository = await self._registry.use_for_backup(wanted.repository)
        async with self._locks.hold(vm_lock(repository.repository_id, wanted.vm_uuid)):
            await self._catalogue.fences.admit(holder)
            await self._reconciler.reconcile_vm(repository, wanted.vm_uuid)
            try:
                layer = await self._create(holder, wanted, repository)
            except (OSError, QemuImgError) as error:
                if is_no_space(error):
                    raise self._registry.no_room(repository, wanted.estimated_bytes) from error
                raise
        return PlacedLayer(layer, repository)

    async def _create(self, holder: Holder, wanted: NewLayer, repository: RepositoryRecord) -> LayerRecord:
        layers = self._catalogue.layers
        elsewhere = await layers.disk_numbers(wanted.vm_uuid)
        number = await asyncio.to_thread(
            disks.allot_number, repository.path, wanted.vm_uuid, wanted.disk_identity, elsewhere
        )
        parent = None
        if wanted.parent_layer_id:
            parent = await require_latest(
                self._catalogue,
                repository.repository_id,
                wanted.vm_uuid,
                number,
                wanted.disk_identity,
                wanted.parent_layer_id,
            )
            require_same_size(parent, wanted.virtual_size_bytes)
        own = await layers.of_job(repository.repository_id, holder.job_id)
        layer = next((each for each in own if each.disk_id == number), None)
        if layer is None:
            await self._registry.require_room(repository, wanted.estimated_bytes)
            layer = await self._add(holder, wanted, repository, number, parent)
        else:
            _require_same(layer, wanted)
        if layer.state == "partial":
            await self._ensure_image(layer, repository, parent)
        return layer

    async def _add(
        self,
        holder: Holder,
        wanted: NewLayer,
        repository: RepositoryRecord,
        number: int,
        parent: LayerRecord | None,
    ) -> LayerRecord:
        now = utc_now()
        directory = layout.disk_directory(repository.path, wanted.vm_uuid, number)
        taken = await self._catalogue.layers.names(repository.repository_id, wanted.vm_uuid, number)
        taken |= await asyncio.to_thread(_image_names, directory)
        name = layout.free_layer_name("full" if parent is None else "incremental", now, taken)
        layer = LayerRecord(
            layer_id=str(uuid.uuid4()),
            repository_id=repository.repository_id,
            vm_uuid=wanted.vm_uuid,
            disk_id=number,
            disk_identity=wanted.disk_identity,
            backup_type="full" if parent is None else "incremental",
            backup_id=holder.job_id,
            attempt=holder.attempt,
            point_id=None,
            parent_layer_id=parent.layer_id if parent is not None else None,
            chain_id=parent.chain_id if parent is not None else str(uuid.uuid4()),
            relative_path=str((directory / name).relative_to(repository.path)),
            virtual_size_bytes=wanted.virtual_size_bytes,
            estimated_bytes=wanted.estimated_bytes,
            change_id=wanted.change_id,
            state="partial",
            areas_digest="",
            area_count=0,
            area_bytes=0,
            journal_digest="",
            metadata_digest="",
            digest="",
            reason="",
            stored_bytes=0,
            poison="",
            created_at=now,
            sealed_at=None,
            deleted_at=None,
        )
        await self._catalogue.layers.add(layer)
        log.info("layer created", layer_id=layer.layer_id, path=layer.relative_path, job_id=holder.job_id)
        return layer

    async def _ensure_image(self, layer: LayerRecord, repository: RepositoryRecord, parent: LayerRecord | None) -> None:
        """Creates the partial image unless it is there; a crash between row and file is repaired here."""
        if layer.poison:
            raise LayerPoisoned(layer.layer_id, layer.poison)
        files = layer.files(repository.path)
        if await asyncio.to_thread(files.image.exists):
            return
        if await asyncio.to_thread(files.journal.exists):
            raise LayerDamaged(layer.layer_id, f"its image {files.partial.name} is gone")
        await asyncio.to_thread(durable.make_directories, repository.path, files.directory)
        await asyncio.to_thread(durable.remove, files.fresh)
        if parent is not None:
            known = {each.layer_id: each for each in await self._vm_layers(layer)}
            await require_sound_chain(parent.files(repository.path).sealed, ancestry(parent, known))
            await require_as_sealed(parent, repository.path)
        try:
            await img.create_qcow2(
                files.fresh,
                layer.virtual_size_bytes,
                backing_name=parent.name if parent is not None else None,
                cluster_size=layout.CLUSTER_SIZE,
            )
            await asyncio.to_thread(durable.sync_file, files.fresh)
            await asyncio.to_thread(durable.move_new, files.fresh, files.partial)
        finally:
            await asyncio.to_thread(durable.remove, files.fresh)

    async def set_areas(self, holder: Holder, layer_id: str, areas: Iterable[Extent]) -> FixedAreas:
        """Fixes what is to be copied; the same areas again are no error.

        Raises:
            InvalidValue: Areas are not sorted, overlap, or go beyond the disk.
            AreasFixed: Other areas were fixed.
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

    async def _vm_layers(self, layer: LayerRecord) -> list[LayerRecord]:
        return await self._catalogue.layers.of_vm(layer.repository_id, layer.vm_uuid)


def _check_size(virtual_size_bytes: int) -> None:
    if not 0 < virtual_size_bytes <= MAX_VIRTUAL_SIZE or virtual_size_bytes % _SECTOR:
        raise InvalidValue("virtual_size_bytes", f"{virtual_size_bytes} is no size of a disk in sectors of {_SECTOR}")


def _require_owner(layer: LayerRecord, holder: Holder) -> None:
    if layer.backup_id != holder.job_id:
        raise ForeignLayer(layer.layer_id, layer.backup_id, holder.job_id)


def _require_same(layer: LayerRecord, wanted: NewLayer) -> None:
    for field, has, want in (
        ("parent_layer_id", layer.parent_layer_id or "", wanted.parent_layer_id),
        ("virtual_size_bytes", layer.virtual_size_bytes, wanted.virtual_size_bytes),
        ("change_id", layer.change_id, wanted.change_id),
    ):
        if has != want:
            raise LayerMismatch(layer.layer_id, field, has, want)


def _image_names(directory: Path) -> frozenset[str]:
    """Names that images on storage take, also those that the catalogue does not know."""
    if not directory.is_dir():
        return frozenset()
    return frozenset(entry.name.removesuffix(layout.PARTIAL_SUFFIX) for entry in directory.iterdir())


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
