"""Takes restore points from storage into the catalogue, when the backup service has written its own rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from sendense_repository import durable
from sendense_repository.documents import DocumentError
from sendense_repository.doubts import agree_on_doubts
from sendense_repository.errors import LayerDamaged, PointNotFound
from sendense_repository.file_flags import unprotect
from sendense_repository.layout import LayerFiles
from sendense_repository.locks import NamedLocks, vm_lock
from sendense_repository.records import LayerRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.scan import Scanner
from sendense_repository.sidecar import read_sidecar
from sendense_repository.store import Catalogue
from sendense_repository.stored import NotWhole, StoredPoint, StoredVm

log = structlog.get_logger()


class Rebuilder:
    """Adopts points."""

    def __init__(self, catalogue: Catalogue, registry: Registry, locks: NamedLocks, scanner: Scanner) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._scanner = scanner

    async def adopt(self, id_or_name: str, backup_ids: Sequence[str], vm_context_id: str = "") -> list[str]:
        """Writes the rows of points and their layers; what is known already is no error.

        Args:
            id_or_name: The repository.
            backup_ids: The points.
            vm_context_id: When their VM is known under another context now: that one; empty takes what storage says.

        Returns:
            The points that were not known before, oldest first for each VM.

        Raises:
            PointNotFound: Storage has no whole point of an id.
            LayerDamaged: A point needs a layer of one that is neither known nor named.
        """
        repository = await self._registry.use(id_or_name)
        found = {each.record.backup_id: each for each in await self._scanner.stored_points(repository.repository_id)}
        wanted: list[StoredPoint] = []
        for backup_id in dict.fromkeys(backup_ids):
            if backup_id in found:
                wanted.append(found[backup_id])
            elif await self._catalogue.points.find(backup_id) is None:
                raise PointNotFound(f"{backup_id}, whole, in repository '{repository.name}'")
        adopted = []
        for point in sorted(wanted, key=lambda each: (each.record.vm_uuid, each.record.sequence)):
            vm_uuid = point.record.vm_uuid
            async with self._locks.hold(vm_lock(repository.repository_id, vm_uuid)):
                if await self._catalogue.points.find(point.record.backup_id) is None:
                    await self._adopt(repository, vm_uuid, point.record.backup_id, vm_context_id)
                    adopted.append(point.record.backup_id)
        return adopted

    async def _adopt(self, repository: RepositoryRecord, vm_uuid: str, backup_id: str, vm_context_id: str) -> None:
        """Adopts one point, as it is on storage now."""
        point = await asyncio.to_thread(_read, repository, vm_uuid, backup_id)
        own = {layer.layer_id for layer in point.layers}
        for layer in point.needed:
            if layer.layer_id not in own and await self._catalogue.layers.find(layer.layer_id) is None:
                finding = f"{layer.name} below it is of restore point {layer.backup_id}, which is not imported"
                raise LayerDamaged(point.layers[0].layer_id, finding)
        layers = [replace(layer, point_id=backup_id) for layer in point.layers]
        record = replace(point.record, vm_context_id=vm_context_id or point.record.vm_context_id)
        await self._catalogue.points.adopt(record, layers)
        await agree_on_doubts(self._catalogue, repository.path, layers)
        log.info("restore point imported", backup_id=backup_id, vm_uuid=vm_uuid, layers=len(layers))


def _read(repository: RepositoryRecord, vm_uuid: str, backup_id: str) -> StoredPoint:
    """Returns a point; merges of its layers that a crash interrupted midway are finished. Blocks for the disk."""
    try:
        point = _stored(repository, vm_uuid, backup_id)
        if any([_finish_swap(layer, repository) for layer in point.needed]):  # noqa: C419  # each of them
            point = _stored(repository, vm_uuid, backup_id)
    except (NotWhole, DocumentError, OSError) as error:
        raise PointNotFound(f"{backup_id}, whole: {error}") from error
    return point


def _stored(repository: RepositoryRecord, vm_uuid: str, backup_id: str) -> StoredPoint:
    stored = StoredVm(repository.path, repository.repository_id, vm_uuid)
    stored.read()
    return stored.point(backup_id)


def _finish_swap(layer: LayerRecord, repository: RepositoryRecord) -> bool:
    """Finishes the renames of a merge whose sidecar says that they had begun; tells whether there was one."""
    files: LayerFiles = layer.files(repository.path)
    if "swap" not in read_sidecar(files.sidecar):
        return False
    for source, target in (
        (files.merged, files.sealed),
        (files.merged_journal, files.journal),
        (files.merged_sidecar, files.sidecar),
    ):
        if source.exists():
            unprotect([target])
            source.replace(target)
    durable.sync_directory(files.directory)
    return True
