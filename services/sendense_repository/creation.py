"""Makes layers: a number for the disk, a name, a row, and an empty image on the right parent.

What always holds: a job has at most one living layer for each disk, and gets it back whenever it asks again; a crash
between row and image is repaired then. The parent is the disk's layer in the VM's latest restore point, undamaged.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

import structlog

from sendense_db.columns import utc_now
from sendense_qemu import img
from sendense_qemu.errors import QemuImgError
from sendense_qemu.header import MAX_VIRTUAL_SIZE
from sendense_repository import disks, durable, layout
from sendense_repository.errors import InvalidValue, LayerDamaged, LayerMismatch, LayerPoisoned, is_no_space
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.locks import NamedLocks, vm_lock
from sendense_repository.parentage import (
    ancestry,
    require_as_sealed,
    require_latest,
    require_same_size,
    require_sound_chain,
)
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import Holder, LayerRecord, PlacedLayer, RepositoryRecord
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


class LayerMaker:
    """Makes layers."""

    def __init__(self, catalogue: Catalogue, registry: Registry, locks: NamedLocks, reconciler: Reconciler) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._reconciler = reconciler
        self._integrity = IntegrityView(catalogue)

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
            await self._integrity.require_undamaged(parent)
        own = await layers.of_job(repository.repository_id, holder.job_id)
        layer = next((each for each in own if each.disk_id == number), None)
        judged = layer is None
        if layer is None:
            await self._registry.require_room(repository, wanted.estimated_bytes)
            if parent is not None:
                # Before the row: a job whose parent is damaged asks for a full next, and must find nothing in its way.
                await self._require_sound(parent, repository)
            layer = await self._add(holder, wanted, repository, number, parent)
        else:
            _require_same(layer, wanted)
        if layer.state == "partial":
            await self._ensure_image(layer, repository, parent, judged=judged)
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

    async def _ensure_image(
        self, layer: LayerRecord, repository: RepositoryRecord, parent: LayerRecord | None, *, judged: bool
    ) -> None:
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
        if parent is not None and not judged:
            await self._require_sound(parent, repository)
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

    async def _require_sound(self, parent: LayerRecord, repository: RepositoryRecord) -> None:
        """Raises LayerDamaged unless the parent is as it was sealed; a finding is kept: the next backup is full."""
        known = {
            each.layer_id: each for each in await self._catalogue.layers.of_vm(parent.repository_id, parent.vm_uuid)
        }
        try:
            await require_sound_chain(parent.files(repository.path).sealed, ancestry(parent, known))
            await require_as_sealed(parent, repository.path)
        except LayerDamaged as error:
            await self._integrity.note_damage(parent, error.finding)
            raise


def _check_size(virtual_size_bytes: int) -> None:
    if not 0 < virtual_size_bytes <= MAX_VIRTUAL_SIZE or virtual_size_bytes % _SECTOR:
        raise InvalidValue("virtual_size_bytes", f"{virtual_size_bytes} is no size of a disk in sectors of {_SECTOR}")


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
