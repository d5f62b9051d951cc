"""Makes catalogue and storage agree after a crash, for one VM: what was committed or being deleted is finished.

A points file decides. When it is there and its layers are the catalogue's, the point is committed, though the process
may have died before its row was written. When a row says `deleting`, the deletion is finished. Anything else that
storage holds and the catalogue does not know is left alone: it may be another catalogue's.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import structlog

from sendense_repository import durable, layout, pointfile
from sendense_repository.documents import DocumentError
from sendense_repository.doubts import agree_on_doubts
from sendense_repository.errors import LayerDamaged, RepositoryUnusable
from sendense_repository.merging import remove_merge
from sendense_repository.records import LayerRecord, RepositoryRecord
from sendense_repository.removal import remove_points
from sendense_repository.steps import StepObserver, log_step
from sendense_repository.store import Catalogue

log = structlog.get_logger()


class Reconciler:
    """Finishes what a crash interrupted."""

    def __init__(self, catalogue: Catalogue, observe: StepObserver = log_step) -> None:
        self._catalogue = catalogue
        self._observe = observe

    async def reconcile_vm(self, repository: RepositoryRecord, vm_uuid: str) -> None:
        """Finishes a VM's deletions and commits. The caller holds the VM's lock and has seen the root's marker."""
        await self._finish_deletions(repository, vm_uuid)
        known = await self._catalogue.points.known_ids(repository.repository_id, vm_uuid)
        names = await asyncio.to_thread(pointfile.point_ids, repository.path, vm_uuid)
        found = []
        for backup_id in sorted(names - known):
            path = layout.point_file(repository.path, vm_uuid, backup_id)
            try:
                found.append(await asyncio.to_thread(pointfile.read_point, path))
            except (DocumentError, OSError) as error:
                log.warning("a points file cannot be read", path=str(path), error=str(error))
        for unknown in sorted(found, key=lambda each: each.record.sequence):
            await self._adopt(repository, vm_uuid, unknown)

    async def _finish_deletions(self, repository: RepositoryRecord, vm_uuid: str) -> None:
        points = [
            point
            for point in await self._catalogue.points.deleting()
            if (point.repository_id, point.vm_uuid) == (repository.repository_id, vm_uuid)
        ]
        try:
            await remove_points(self._catalogue, repository.path, points, self._observe)
        except LayerDamaged as error:
            # Nothing was removed, so what is kept can still be read.
            log.exception("a deletion cannot be finished", backup_ids=[each.backup_id for each in points], error=error)

    async def remove_leftovers(self, repository: RepositoryRecord, vm_uuid: str) -> None:
        """Removes merges that a crash interrupted before their deletion began; only when none is being made."""
        if any(point.vm_uuid == vm_uuid for point in await self._catalogue.points.deleting()):
            return
        for layer in await self._catalogue.layers.of_vm(repository.repository_id, vm_uuid):
            await asyncio.to_thread(remove_merge, layer.files(repository.path))

    async def _adopt(self, repository: RepositoryRecord, vm_uuid: str, point: pointfile.PointFile) -> None:
        record = point.record
        layers = [await self._catalogue.layers.find(layer_id) for layer_id in point.layer_digests]
        ours = [layer for layer in layers if layer is not None and _belongs(layer, point)]
        if (record.repository_id, record.vm_uuid) != (repository.repository_id, vm_uuid) or len(ours) != len(layers):
            log.warning("storage holds a restore point that the catalogue does not know", backup_id=record.backup_id)
            return
        await self._catalogue.points.add(record, list(point.layer_digests))
        log.info("commit finished after a crash", backup_id=record.backup_id)

    async def reconcile_all(self, repository: RepositoryRecord) -> None:
        """Reconciles every VM of a repository; called at start, before any call is served."""
        directories = await asyncio.to_thread(_vm_directories, repository)
        deleting = {
            point.vm_uuid
            for point in await self._catalogue.points.deleting()
            if point.repository_id == repository.repository_id
        }
        for vm_uuid in sorted(directories | deleting):
            await self.reconcile_vm(repository, vm_uuid)
            await self.remove_leftovers(repository, vm_uuid)
            of_vm = await self._catalogue.layers.of_vm(repository.repository_id, vm_uuid)
            await agree_on_doubts(self._catalogue, repository.path, of_vm)
        await asyncio.to_thread(_remove_temporaries, repository.path)


def _belongs(layer: LayerRecord, point: pointfile.PointFile) -> bool:
    return (
        layer.state == "sealed"
        and layer.point_id is None
        and layer.backup_id == point.record.backup_id
        and layer.digest == point.layer_digests[layer.layer_id]
    )


def _remove_temporaries(root: Path) -> None:
    """Removes what a crash left half written beside the repository's own files; nothing is being written yet."""
    ours = [root]
    for directory in (entry for entry in root.iterdir() if layout.is_vm_directory(entry)):
        ours += [directory, *(entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink())]
    for path in (path for directory in ours for path in directory.glob(f"{durable.TEMPORARY_PREFIX}*")):
        log.info("leftover removed", path=str(path))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _vm_directories(repository: RepositoryRecord) -> set[str]:
    try:
        return {entry.name for entry in repository.path.iterdir() if (entry / layout.POINTS_DIRECTORY).is_dir()}
    except OSError as error:
        raise RepositoryUnusable(repository.path, f"it cannot be listed: {error.strerror}") from error
