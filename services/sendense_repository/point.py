"""Restore points: committed whole or not at all, found, and kept as they are while somebody reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from sendense_db.columns import utc_now
from sendense_repository import durable, layout, pointfile
from sendense_repository.errors import (
    ForeignLayer,
    InvalidValue,
    LayerDamaged,
    LayerNotFound,
    LayerNotSealed,
    PointConflict,
    PointNotFound,
    is_no_space,
)
from sendense_repository.file_flags import protect
from sendense_repository.locks import NamedLocks, vm_lock
from sendense_repository.parentage import require_as_sealed, require_latest
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import Holder, LayerRecord, LeaseRecord, PointRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.steps import StepObserver, log_step
from sendense_repository.store import Catalogue

log = structlog.get_logger()

MAX_LEASE_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class NewPoint:
    """What a job wants to commit."""

    repository: str
    vm_uuid: str
    vm_name: str
    vm_context_id: str
    layer_ids: Sequence[str]
    snapshot_at: datetime | None
    hardware_json: str


@dataclass(frozen=True, slots=True)
class PlacedPoint:
    """A point with its layers, by disk, and its repository."""

    point: PointRecord
    layers: Sequence[LayerRecord]
    repository: RepositoryRecord


class PointDesk:
    """Commits, finds and leases restore points."""

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

    async def commit(self, holder: Holder, wanted: NewPoint) -> PlacedPoint:
        """Makes a restore point out of a job's sealed layers; the same again is no error.

        Raises:
            LayerNotSealed: One of them is not sealed.
            StaleParent: Another point was committed since the layers were made.
            PointConflict: There is a point of that name with other layers.
            LayerDamaged: A layer is not as it was sealed.
        """
        layout.check_vm_uuid(wanted.vm_uuid)
        layout.check_backup_id(holder.job_id)
        _check_hardware(wanted.hardware_json)
        repository = await self._registry.use(wanted.repository)
        async with self._locks.hold(vm_lock(repository.repository_id, wanted.vm_uuid)):
            await self._catalogue.fences.admit(holder)
            await self._reconciler.reconcile_vm(repository, wanted.vm_uuid)
            known = await self._catalogue.points.find_any(holder.job_id)
            if known is not None:
                return await self._same(known, wanted, repository)
            layers = await self._layers(holder, wanted, repository)
            record = await self._next(holder, wanted, repository)
            content, digest = pointfile.encode_point(record, layers)
            path = layout.point_file(repository.path, wanted.vm_uuid, holder.job_id)
            try:
                await asyncio.to_thread(durable.make_directories, repository.path, path.parent)
                await asyncio.to_thread(durable.write_new, path, content, mode=0o444)
            except FileExistsError as error:
                raise PointConflict(holder.job_id, f"{path} is there already, with other layers") from error
            except OSError as error:
                if is_no_space(error):
                    raise self._registry.no_room(repository, len(content)) from error
                raise
            self._observe("point-file")
            record = replace(record, digest=digest)
            await self._catalogue.points.add(record, [layer.layer_id for layer in layers])
            self._observe("point-row")
            if repository.options.immutable_files:
                await asyncio.to_thread(_make_immutable, path, layers, repository)
        log.info("restore point committed", backup_id=record.backup_id, sequence=record.sequence)
        return await self._placed(record, repository)

    async def get(self, backup_id: str) -> PlacedPoint:
        """Returns a committed point.

        Raises:
            PointNotFound: There is none of that id.
        """
        record = await self._catalogue.points.find(backup_id)
        if record is None:
            raise PointNotFound(backup_id)
        return await self._placed(record, await self._registry.get(record.repository_id))

    async def latest(self, repository: str, vm_uuid: str) -> PlacedPoint:
        """Returns a VM's newest committed point in a repository.

        Raises:
            PointNotFound: It has none there.
        """
        place = await self._registry.get(repository)
        record = await self._catalogue.points.latest(place.repository_id, vm_uuid)
        if record is None:
            raise PointNotFound(f"of VM {vm_uuid} in repository '{place.name}'")
        return await self._placed(record, place)

    async def lease(self, backup_id: str, holder: str, seconds: int) -> LeaseRecord:
        """Keeps a point from being deleted or merged for some seconds from now; renews an own lease.

        Raises:
            PointNotFound: There is no such point.
            InvalidValue: The lease is too long.
        """
        if seconds > MAX_LEASE_SECONDS:
            raise InvalidValue("seconds", f"a lease lasts at most {MAX_LEASE_SECONDS} seconds, not {seconds}")
        found = await self.get(backup_id)
        async with self._locks.hold(vm_lock(found.point.repository_id, found.point.vm_uuid)):
            # Looked at again under the lock: a deletion may have begun.
            if await self._catalogue.points.find(backup_id) is None:
                raise PointNotFound(backup_id)
            return await self._catalogue.leases.put(backup_id, holder, utc_now() + timedelta(seconds=seconds))

    async def release(self, backup_id: str, holder: str) -> None:
        """Ends a lease; what is not there is no error."""
        await self._catalogue.leases.remove(backup_id, holder)

    async def _placed(self, record: PointRecord, repository: RepositoryRecord) -> PlacedPoint:
        return PlacedPoint(record, await self._catalogue.layers.of_points([record.backup_id]), repository)

    async def _same(self, known: PointRecord, wanted: NewPoint, repository: RepositoryRecord) -> PlacedPoint:
        """Returns a point that was committed before, when it is the wanted one."""
        if known.state != "committed":
            raise PointConflict(known.backup_id, "it was deleted")
        placed = await self._placed(known, repository)
        if (known.repository_id, known.vm_uuid) != (repository.repository_id, wanted.vm_uuid) or {
            layer.layer_id for layer in placed.layers
        } != set(wanted.layer_ids):
            raise PointConflict(known.backup_id, "it is committed already, with other layers")
        return placed

    async def _layers(self, holder: Holder, wanted: NewPoint, repository: RepositoryRecord) -> list[LayerRecord]:
        layers = []
        for layer_id in dict.fromkeys(wanted.layer_ids):
            layer = await self._catalogue.layers.find(layer_id)
            if layer is None:
                raise LayerNotFound(layer_id)
            if layer.backup_id != holder.job_id:
                raise ForeignLayer(layer_id, layer.backup_id, holder.job_id)
            if (layer.repository_id, layer.vm_uuid) != (repository.repository_id, wanted.vm_uuid):
                raise PointConflict(holder.job_id, f"layer {layer_id} is of another VM or in another repository")
            if layer.state != "sealed":
                raise LayerNotSealed(layer_id)
            if layer.parent_layer_id is not None:
                await require_latest(
                    self._catalogue,
                    repository.repository_id,
                    wanted.vm_uuid,
                    layer.disk_id,
                    layer.disk_identity,
                    layer.parent_layer_id,
                )
            if not await asyncio.to_thread(layer.files(repository.path).sealed.exists):
                raise LayerDamaged(layer_id, f"its image {layer.name} is gone")
            await require_as_sealed(layer, repository.path)
            layers.append(layer)
        return layers

    async def _next(self, holder: Holder, wanted: NewPoint, repository: RepositoryRecord) -> PointRecord:
        points = self._catalogue.points
        latest = await points.latest(repository.repository_id, wanted.vm_uuid)
        # A rebuilt catalogue may not know all points that storage holds: their sequences are not given again.
        on_storage = await asyncio.to_thread(pointfile.point_ids, repository.path, wanted.vm_uuid)
        unknown = on_storage - await points.known_ids(repository.repository_id, wanted.vm_uuid)
        sequence = max(
            await points.last_sequence(repository.repository_id, wanted.vm_uuid),
            await asyncio.to_thread(pointfile.last_sequence, repository.path, wanted.vm_uuid, unknown),
        )
        return PointRecord(
            backup_id=holder.job_id,
            repository_id=repository.repository_id,
            vm_uuid=wanted.vm_uuid,
            vm_name=wanted.vm_name,
            vm_context_id=wanted.vm_context_id,
            sequence=sequence + 1,
            previous_backup_id=latest.backup_id if latest is not None else "",
            hardware_json=wanted.hardware_json,
            digest="",
            state="committed",
            snapshot_at=wanted.snapshot_at,
            committed_at=utc_now(),
        )


def _make_immutable(path: Path, layers: Sequence[LayerRecord], repository: RepositoryRecord) -> None:
    """Guards a committed point's files against accidents; that it cannot be done is no reason to lose the point."""
    files = [layer.files(repository.path) for layer in layers]
    try:
        protect([path, *(each for one in files for each in (one.sealed, one.journal, one.sidecar))])
    except OSError as error:
        log.warning("files cannot be made immutable", path=str(path), error=error.strerror)


def _check_hardware(hardware_json: str) -> None:
    if not hardware_json:
        return
    try:
        json.loads(hardware_json)
    except ValueError as error:
        raise InvalidValue("hardware_json", f"it is no JSON: {error}") from error
