"""Seals a layer: proves that its image holds what its journal says, makes it durable and read-only, describes it.

The order is DESIGN's: writer closed, header, `qemu-img check` (leaks repaired, anything else fails), the journal covers
the areas exactly, depth-0 allocation equals the manifest, metadata digest, fsync, read-only, rename from `.partial`,
sidecar. Every step can be repeated: after a crash at any of them, sealing again finishes. Only an fsync that failed is
never tried again, since a second one may succeed without the data being there: it poisons the layer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sendense_blockio.errors import BlockIOError
from sendense_blockio.journal import Journal, coverage, read_journal
from sendense_db.columns import utc_now
from sendense_qemu import img
from sendense_qemu.errors import HeaderError, QemuImgError
from sendense_qemu.header import check_header
from sendense_repository import documents, durable
from sendense_repository.areas import AreasDamaged, read_areas
from sendense_repository.documents import DocumentError
from sendense_repository.errors import (
    AreasNotSet,
    ForeignLayer,
    JournalIncomplete,
    LayerBusy,
    LayerDamaged,
    LayerPoisoned,
    is_no_space,
)
from sendense_repository.image_lock import is_open_in_qemu
from sendense_repository.journals import OpenJournals, journal_header
from sendense_repository.layer import LayerDesk
from sendense_repository.layout import CLUSTER_SIZE, LayerFiles
from sendense_repository.locks import NamedLocks, layer_lock
from sendense_repository.manifest import compare_allocation
from sendense_repository.parentage import SIDECAR_KIND, ancestry, require_sound_chain
from sendense_repository.qcow2_metadata import Metadata, MetadataError, read_metadata
from sendense_repository.records import Holder, LayerRecord, PlacedLayer
from sendense_repository.registry import Registry
from sendense_repository.sidecar import encode_sidecar
from sendense_repository.sparse_tables import give_back_unused
from sendense_repository.steps import StepObserver, log_step
from sendense_repository.store import Catalogue
from sendense_repository.zeroes import first_not_zero

log = structlog.get_logger()

_READ_ONLY = 0o444


@dataclass(frozen=True, slots=True)
class _Seal:
    """One layer on its way; `chain` is the layer and all below it."""

    layer: LayerRecord
    chain: list[LayerRecord]
    files: LayerFiles
    image: Path


class Sealer:
    """Seals layers.

    Args:
        catalogue: Where layers are recorded.
        registry: Repositories.
        locks: The service's locks.
        journals: Open journals; a layer's is closed first.
        desk: Finds layers.
        sync: Makes a file durable; replaced in fault tests.
        observe: Told of each step after it was done.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        registry: Registry,
        locks: NamedLocks,
        journals: OpenJournals,
        desk: LayerDesk,
        *,
        sync: Callable[[Path], None] = durable.sync_file,
        observe: StepObserver = log_step,
    ) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._journals = journals
        self._desk = desk
        self._sync = sync
        self._observe = observe

    async def seal(self, holder: Holder, layer_id: str, reason: str) -> PlacedLayer:
        """Seals a layer; a sealed one is returned as it is.

        Raises:
            LayerBusy: A writer has it open.
            JournalIncomplete: Not everything was copied, or more.
            LayerDamaged: The image does not hold what the journal says.
            LayerPoisoned: Making it durable failed once.
        """
        async with self._locks.hold(layer_lock(layer_id)):
            await self._catalogue.fences.admit(holder)
            placed = await self._desk.find(layer_id)
            layer = placed.layer
            if layer.backup_id != holder.job_id:
                raise ForeignLayer(layer_id, layer.backup_id, holder.job_id)
            if layer.poison:
                raise LayerPoisoned(layer_id, layer.poison)
            if layer.state == "sealed":
                await asyncio.to_thread(_remove_areas, layer.files(placed.repository.path))
                return placed
            self._journals.close(layer_id)
            try:
                sealed = await self._seal(placed, reason)
            except (QemuImgError, OSError) as error:
                raise self._explain(placed, error) from error
            log.info("layer sealed", layer_id=layer_id, path=sealed.relative_path, stored_bytes=sealed.stored_bytes)
            return PlacedLayer(sealed, placed.repository)

    async def _seal(self, placed: PlacedLayer, reason: str) -> LayerRecord:
        layer = placed.layer
        files = layer.files(placed.repository.path)
        image = await asyncio.to_thread(_present_image, layer, files)
        vm_layers = await self._catalogue.layers.of_vm(layer.repository_id, layer.vm_uuid)
        chain = ancestry(layer, {each.layer_id: each for each in vm_layers})
        seal = _Seal(layer, chain, files, image)
        await self._require_closed(seal)
        await self._check_header(seal)
        await self._check_image(seal)
        journal = await asyncio.to_thread(_complete_journal, layer, files)
        self._observe("journal")
        await self._check_allocation(seal, journal)
        found = await self._digest(seal)
        self._observe("metadata")
        await self._make_durable(seal)
        sealed = await asyncio.to_thread(_describe, replace(layer, reason=reason), chain, files, journal, found)
        self._observe("sidecar")
        await self._catalogue.layers.record_seal(sealed)
        self._observe("record")
        await asyncio.to_thread(_remove_areas, files)
        self._observe("areas-removed")
        return sealed

    async def _require_closed(self, seal: _Seal) -> None:
        if await asyncio.to_thread(is_open_in_qemu, seal.image):
            raise LayerBusy(seal.layer.layer_id)
        self._observe("writer-closed")

    async def _check_header(self, seal: _Seal) -> None:
        layer, below = seal.layer, seal.chain[1:]
        try:
            header = await asyncio.to_thread(check_header, seal.image, backing_name=below[0].name if below else None)
        except HeaderError as error:
            raise LayerDamaged(layer.layer_id, str(error)) from error
        if (header.virtual_size, header.cluster_size) != (layer.virtual_size_bytes, CLUSTER_SIZE):
            finding = f"its header says {header.virtual_size} bytes in clusters of {header.cluster_size}"
            raise LayerDamaged(layer.layer_id, finding)
        await require_sound_chain(seal.image, seal.chain)
        self._observe("header")

    async def _check_image(self, seal: _Seal) -> None:
        checked = await img.check(seal.image)
        if checked.is_sound and checked.leaks:
            checked = await img.check(seal.image, repair_leaks=True)
        if not checked.is_sound or checked.leaks:
            finding = f"qemu-img check found {checked.corruptions} corruptions and {checked.leaks} leaks"
            raise LayerDamaged(seal.layer.layer_id, finding)
        # Before anything is proven: what is found from here on is found in the file as it stays.
        await asyncio.to_thread(give_back_unused, seal.image, end=checked.image_end_offset, cluster_size=CLUSTER_SIZE)
        self._observe("check")

    async def _check_allocation(self, seal: _Seal, journal: Journal) -> None:
        layer = seal.layer
        allocation = await img.map_depths(seal.image, "qcow2")
        difference = await asyncio.to_thread(
            compare_allocation,
            journal.entries,
            allocation,
            cluster_size=CLUSTER_SIZE,
            virtual_size=layer.virtual_size_bytes,
            has_parent=layer.parent_layer_id is not None,
        )
        if difference.finding:
            raise LayerDamaged(layer.layer_id, difference.finding)
        if difference.to_prove_zero:
            finding = await first_not_zero(seal.image, difference.to_prove_zero)
            if finding:
                raise LayerDamaged(layer.layer_id, f"journaled zeroes are not zero: {finding}")
        self._observe("allocation")

    async def _digest(self, seal: _Seal) -> Metadata:
        try:
            return await asyncio.to_thread(read_metadata, seal.image)
        except MetadataError as error:
            raise LayerDamaged(seal.layer.layer_id, str(error)) from error

    async def _make_durable(self, seal: _Seal) -> None:
        try:
            await asyncio.to_thread(self._sync, seal.image)
            self._observe("sync")
            await asyncio.to_thread(seal.image.chmod, _READ_ONLY)
            await asyncio.to_thread(seal.files.journal.chmod, _READ_ONLY)
            await asyncio.to_thread(self._sync, seal.image)
            self._observe("read-only")
            if seal.image != seal.files.sealed:
                await asyncio.to_thread(durable.move_new, seal.image, seal.files.sealed)
            else:
                await asyncio.to_thread(durable.sync_directory, seal.files.directory)
            self._observe("rename")
        except OSError as error:
            finding = f"it could not be made durable: {error.strerror or error}"
            await self._catalogue.layers.poison(seal.layer.layer_id, finding)
            log.exception("layer poisoned", layer_id=seal.layer.layer_id)
            raise LayerPoisoned(seal.layer.layer_id, finding) from error

    def _explain(self, placed: PlacedLayer, error: QemuImgError | OSError) -> Exception:
        """Returns what a failure of qemu-img or of the file system means for the caller."""
        layer = placed.layer
        if is_no_space(error):
            return self._registry.no_room(placed.repository, layer.estimated_bytes)
        if isinstance(error, QemuImgError):
            if error.is_locked:
                return LayerBusy(layer.layer_id)
            if error.status is not None and error.status > 0:
                return LayerDamaged(layer.layer_id, error.stderr)
        return error


def _present_image(layer: LayerRecord, files: LayerFiles) -> Path:
    """Returns the image under the name that it has now; an interrupted rename (two names) is finished."""
    if files.partial.exists():
        if files.sealed.exists():
            if not files.sealed.samefile(files.partial):
                raise LayerDamaged(layer.layer_id, f"another file has the name {files.sealed.name}")
            durable.move_new(files.partial, files.sealed)
            return files.sealed
        return files.partial
    if files.sealed.exists():
        return files.sealed
    raise LayerDamaged(layer.layer_id, f"its image {files.partial.name} is gone")


def _complete_journal(layer: LayerRecord, files: LayerFiles) -> Journal:
    """Returns the layer's journal, which covers its areas exactly."""
    if not layer.areas_digest:
        raise AreasNotSet(layer.layer_id)
    try:
        journal = read_journal(files.journal, journal_header(layer, layer.areas_digest))
        areas = read_areas(files.areas, layer.areas_digest, layer.virtual_size_bytes)
        covered = coverage(journal.entries, areas)
    except (AreasDamaged, BlockIOError, FileNotFoundError) as error:
        raise LayerDamaged(layer.layer_id, str(error)) from error
    if not covered.exact:
        differing = [*covered.missing, *covered.surplus]
        raise JournalIncomplete(
            layer.layer_id,
            sum(each.length for each in covered.missing),
            sum(each.length for each in covered.surplus),
            min(each.offset for each in differing),
        )
    return journal


def _describe(
    layer: LayerRecord, chain: list[LayerRecord], files: LayerFiles, journal: Journal, found: Metadata
) -> LayerRecord:
    """Writes the sidecar, or takes up the one that an interrupted seal wrote; returns the sealed layer."""
    sealed = replace(
        layer,
        state="sealed",
        journal_digest=journal.checksum.hex(),
        metadata_digest=found.digest,
        stored_bytes=files.stored_bytes(),
        sealed_at=utc_now(),
    )
    parent = chain[1] if len(chain) > 1 else None
    content, digest = encode_sidecar(sealed, parent, files, found.marks)
    try:
        durable.write_new(files.sidecar, content, mode=_READ_ONLY)
    except FileExistsError:
        _require_same_sidecar(sealed, files)
        # Nobody has seen the earlier one: the layer was not recorded as sealed, so it is in no point and no parent.
        durable.replace(files.sidecar, content, mode=_READ_ONLY)
    return replace(sealed, digest=digest)


def _require_same_sidecar(layer: LayerRecord, files: LayerFiles) -> None:
    try:
        found = documents.read(files.sidecar, SIDECAR_KIND)
    except (DocumentError, FileNotFoundError) as error:
        raise LayerDamaged(layer.layer_id, str(error)) from error
    for member, expected in (("layer_id", layer.layer_id), ("metadata_digest", layer.metadata_digest)):
        if found.get(member) != expected:
            raise LayerDamaged(layer.layer_id, f"its sidecar {files.sidecar.name} says another {member}")


def _remove_areas(files: LayerFiles) -> None:
    if durable.remove(files.areas):
        durable.sync_directory(files.directory)
