"""Deletes restore points, never harming another one, and says beforehand what will happen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from sendense_db.columns import utc_now
from sendense_repository.errors import HasDependants, PointLeased, PointNotFound
from sendense_repository.image_lock import is_open_in_qemu
from sendense_repository.locks import NamedLocks, vm_lock
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import Holder, LayerRecord, PointRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.removal import remove_point
from sendense_repository.steps import StepObserver, log_step
from sendense_repository.store import Catalogue

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was, or would be, removed.

    Attributes:
        backup_ids: Points, newest first.
        freed_bytes: Bytes that come back.
    """

    backup_ids: Sequence[str]
    freed_bytes: int


class Deleter:
    """Deletes restore points."""

    def __init__(
        self,
        catalogue: Catalogue,
        registry: Registry,
        locks: NamedLocks,
        reconciler: Reconciler,
        observe: StepObserver = log_step,
    ) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._reconciler = reconciler
        self._observe = observe

    async def delete(self, holder: Holder, backup_id: str, *, cascade: bool, dry_run: bool) -> Deletion:
        """Deletes a point, with `cascade` those that build on it too; a point that was deleted before is no error.

        Raises:
            PointNotFound: There never was such a point.
            HasDependants: Others build on it and `cascade` is not set.
            PointLeased: Somebody reads one of them, or a running backup builds on one.
        """
        known = await self._catalogue.points.find_any(backup_id)
        if known is None:
            raise PointNotFound(backup_id)
        async with self._locks.hold(vm_lock(known.repository_id, known.vm_uuid)):
            await self._catalogue.fences.admit(holder)
            repository = await self._registry.use(known.repository_id)
            await self._reconciler.reconcile_vm(repository, known.vm_uuid)
            point = await self._catalogue.points.find(backup_id)
            if point is None:
                return Deletion((), 0)
            victims, layers = await self._victims(point, cascade=cascade)
            await self._require_unused(victims, layers, repository)
            if dry_run:
                return Deletion(_ids(victims), await asyncio.to_thread(_freed_bytes, layers, repository))
            await self._catalogue.points.begin_delete(_ids(victims))
            self._observe("delete-intent")
            freed = 0
            for victim in victims:
                freed += await remove_point(self._catalogue, repository.path, victim, self._observe)
        log.info("restore points deleted", backup_ids=_ids(victims), freed_bytes=freed, job_id=holder.job_id)
        return Deletion(_ids(victims), freed)

    async def _victims(self, point: PointRecord, *, cascade: bool) -> tuple[list[PointRecord], list[LayerRecord]]:
        """Returns the points to delete, newest first, and their layers."""
        all_layers = await self._catalogue.layers.of_vm(point.repository_id, point.vm_uuid)
        doomed = {layer.layer_id for layer in all_layers if layer.point_id == point.backup_id}
        while more := {
            layer.layer_id for layer in all_layers if layer.parent_layer_id in doomed and layer.layer_id not in doomed
        }:
            # A point goes whole: with one of its layers all of them do, and what builds on those.
            owners = {layer.point_id for layer in all_layers if layer.layer_id in more and layer.point_id is not None}
            doomed |= more | {layer.layer_id for layer in all_layers if layer.point_id in owners}
        layers = [layer for layer in all_layers if layer.layer_id in doomed]
        running = sorted({layer.backup_id for layer in layers if layer.point_id is None})
        dependants = {layer.point_id for layer in layers if layer.point_id} - {point.backup_id}
        points = await self._catalogue.points.of_vm(point.repository_id, point.vm_uuid)
        if dependants and not cascade:
            raise HasDependants(point.backup_id, [each.backup_id for each in points if each.backup_id in dependants])
        if running:
            raise PointLeased(point.backup_id, running)
        return [each for each in points if each.backup_id in dependants | {point.backup_id}], layers

    async def _require_unused(
        self, victims: list[PointRecord], layers: list[LayerRecord], repository: RepositoryRecord
    ) -> None:
        leases = await self._catalogue.leases.living(_ids(victims), utc_now())
        if leases:
            leased = leases[0].backup_id
            raise PointLeased(leased, [lease.holder for lease in leases if lease.backup_id == leased])
        # A lease that ran out is not enough: whoever still has the image open must end first.
        for layer in layers:
            if await asyncio.to_thread(is_open_in_qemu, layer.files(repository.path).sealed):
                raise PointLeased(layer.backup_id, ["a qemu process that has its image open"])


def _ids(points: Sequence[PointRecord]) -> list[str]:
    return [point.backup_id for point in points]


def _freed_bytes(layers: Sequence[LayerRecord], repository: RepositoryRecord) -> int:
    return sum(layer.files(repository.path).freed_bytes() for layer in layers)
