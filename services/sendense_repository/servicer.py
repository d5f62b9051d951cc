"""The gRPC edge: each RPC converts, calls one use case, converts back. Mutations outlive a caller's deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from sendense.repository.v1 import (
    layer_pb2,
    layer_pb2_grpc,
    point_pb2,
    point_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)
from sendense_blockio.errors import InvalidExtentError
from sendense_db.columns import utc_now
from sendense_repository import convert
from sendense_repository.administration import Administration, Change
from sendense_repository.chain import ChainViewer
from sendense_repository.creation import NewLayer
from sendense_repository.deletion import Deleter
from sendense_repository.errors import InvalidValue, LayerNotFound
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.operations import Operations
from sendense_repository.options import RepositoryOptions
from sendense_repository.point import NewPoint, PlacedPoint, PointDesk
from sendense_repository.records import LayerRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.repositories import Repositories
from sendense_repository.scan import Scanner
from sendense_repository.unbroken import Unbroken
from sendense_rpc.identity import current_limits
from sendense_rpc.limits import OutsideLimits

PAGE_AREAS = 10_000
"""Areas of one page of an answer."""


class RepositoryServicer(repository_pb2_grpc.RepositoryServiceServicer):
    """Implements RepositoryService."""

    def __init__(
        self, registry: Registry, administration: Administration, scanner: Scanner, unbroken: Unbroken
    ) -> None:
        self._registry = registry
        self._administration = administration
        self._scanner = scanner
        self._unbroken = unbroken

    async def _shown(self, record: RepositoryRecord) -> repository_pb2.Repository:
        outlook = await self._administration.outlook(record)
        return convert.repository(record, outlook, self._registry.reserve_bytes(record))

    async def ListRepositories(
        self, request: repository_pb2.ListRepositoriesRequest, context: Any
    ) -> repository_pb2.ListRepositoriesResponse:
        """Lists the repositories by name."""
        del request, context
        limits = current_limits()
        records = [
            each for each in await self._registry.all() if limits.admits_repository(each.name, each.repository_id)
        ]
        return repository_pb2.ListRepositoriesResponse(repositories=[await self._shown(each) for each in records])

    async def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        """Returns one repository."""
        del context
        limits = current_limits()
        if limits.repositories:
            # Not by `get`, whose refusal lists all that there are.
            known = [
                each for each in await self._registry.all() if request.repository_id in (each.name, each.repository_id)
            ]
            if not any(limits.admits_repository(each.name, each.repository_id) for each in known):
                raise OutsideLimits("repository", request.repository_id)
        return await self._shown(await self._registry.get(request.repository_id))

    async def CreateRepository(
        self, request: repository_pb2.CreateRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        """Registers a directory."""
        del context
        options = RepositoryOptions(
            reserve_bytes=request.reserve_bytes if request.HasField("reserve_bytes") else None,
            immutable_files=request.immutable_files,
        ).with_lock(request.lock_seconds, utc_now())
        work = self._administration.create(request.name, request.repository_type, Path(request.path), options)
        return await self._shown(await self._unbroken.run(work))

    async def UpdateRepository(
        self, request: repository_pb2.UpdateRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        """Changes what is set."""
        del context
        change = Change(
            name=request.name or None,
            enabled=request.enabled if request.HasField("enabled") else None,
            reserve_bytes=request.reserve_bytes if request.HasField("reserve_bytes") else None,
            lock_seconds=request.lock_seconds if request.HasField("lock_seconds") else None,
            immutable_files=request.immutable_files if request.HasField("immutable_files") else None,
        )
        work = self._administration.update(request.repository_id, change)
        return await self._shown(await self._unbroken.run(work))

    async def ProbeRepository(
        self, request: repository_pb2.ProbeRepositoryRequest, context: Any
    ) -> repository_pb2.RepositoryProbe:
        """Tries whether backups can be kept in it now."""
        del context
        record, trials = await self._unbroken.run(self._administration.probe(request.repository_id))
        return repository_pb2.RepositoryProbe(
            repository_id=record.repository_id,
            usable=all(trial.passed for trial in trials),
            results=[
                repository_pb2.ProbeResult(name=trial.name, passed=trial.passed, finding=trial.finding)
                for trial in trials
            ],
        )

    async def DeleteRepository(
        self, request: repository_pb2.DeleteRepositoryRequest, context: Any
    ) -> repository_pb2.DeleteRepositoryResponse:
        """Forgets a repository."""
        del context
        work = self._administration.forget(request.repository_id, forget_points=request.forget_points)
        await self._unbroken.run(work)
        return repository_pb2.DeleteRepositoryResponse()

    async def ScanRepository(
        self, request: repository_pb2.ScanRepositoryRequest, context: Any
    ) -> repository_pb2.ScanReport:
        """Compares storage with the catalogue."""
        del context
        return convert.scan_report(await self._unbroken.run(self._scanner.scan(request.repository_id)))


class LayerServicer(layer_pb2_grpc.LayerServiceServicer):
    """Implements LayerService."""

    def __init__(self, repositories: Repositories, unbroken: Unbroken) -> None:
        self._repositories = repositories
        self._unbroken = unbroken

    async def CreateLayer(self, request: layer_pb2.CreateLayerRequest, context: Any) -> layer_pb2.Layer:
        """Makes a partial layer, or returns the job's."""
        del context
        wanted = NewLayer(
            repository=request.repository_id,
            vm_uuid=request.vm_uuid,
            disk_identity=request.disk_identity,
            virtual_size_bytes=request.virtual_size_bytes,
            parent_layer_id=request.parent_layer_id,
            change_id=request.change_id,
            estimated_bytes=max(0, request.estimated_bytes),
        )
        repository = await self._repositories.open(request.repository_id)
        placed = await self._unbroken.run(repository.create_layer(convert.holder(request.holder), wanted))
        position = await repository.journal_position(placed.layer.layer_id)
        message = convert.placed_layer(placed)
        message.journal_sequence, message.journaled_bytes = position.last_sequence, position.journaled_bytes
        return message

    async def SetAreas(
        self, request_iterator: AsyncIterator[layer_pb2.SetAreasRequest], context: Any
    ) -> layer_pb2.Areas:
        """Fixes what is to be copied."""
        del context
        first: layer_pb2.SetAreasRequest | None = None
        areas, complete = [], False
        async for message in request_iterator:
            first, complete = first or message, message.last
            try:
                areas += [convert.extent(area) for area in message.areas]
            except InvalidExtentError as error:
                raise InvalidValue("areas", str(error)) from error
        if first is None or not first.layer_id or not first.HasField("holder"):
            raise InvalidValue("layer_id", "the first message must name holder and layer")
        if not complete:
            # The caller died in the middle: fewer areas than meant would make a wrong increment.
            raise InvalidValue("last", "the stream ended before its last message; nothing was fixed")
        repository = await self._repositories.of_layer(first.layer_id)
        work = repository.set_areas(convert.holder(first.holder), first.layer_id, areas)
        fixed = await self._unbroken.run(work)
        return layer_pb2.Areas(count=fixed.count, total_bytes=fixed.total_bytes, digest=fixed.digest)

    async def ListRemainingAreas(
        self, request: layer_pb2.ListRemainingAreasRequest, context: Any
    ) -> AsyncIterator[layer_pb2.AreaPage]:
        """Streams what is still to be copied."""
        del context
        repository = await self._repositories.of_layer(request.layer_id)
        remaining = await repository.remaining_areas(request.layer_id)
        for start in range(0, len(remaining), PAGE_AREAS):
            yield convert.page(remaining[start : start + PAGE_AREAS])

    async def AppendJournal(self, request: layer_pb2.AppendJournalRequest, context: Any) -> layer_pb2.JournalState:
        """Commits a flushed batch."""
        del context
        holder, layer_id = convert.holder(request.holder), request.layer_id
        repository = await self._repositories.of_layer(layer_id)
        work = repository.append_journal(holder, layer_id, request.sequence, request.entries)
        position = await self._unbroken.run(work)
        return layer_pb2.JournalState(last_sequence=position.last_sequence, journaled_bytes=position.journaled_bytes)

    async def SealLayer(self, request: layer_pb2.SealLayerRequest, context: Any) -> layer_pb2.Layer:
        """Seals a layer."""
        del context
        repository = await self._repositories.of_layer(request.layer_id)
        work = repository.seal_layer(convert.holder(request.holder), request.layer_id, request.reason)
        return convert.placed_layer(await self._unbroken.run(work))

    async def DiscardLayer(
        self, request: layer_pb2.DiscardLayerRequest, context: Any
    ) -> layer_pb2.DiscardLayerResponse:
        """Removes a layer that belongs to no point."""
        del context
        try:
            repository = await self._repositories.of_layer(request.layer_id)
        except LayerNotFound:
            return layer_pb2.DiscardLayerResponse()
        await self._unbroken.run(repository.discard_layer(convert.holder(request.holder), request.layer_id))
        return layer_pb2.DiscardLayerResponse()


class PointServicer(point_pb2_grpc.PointServiceServicer):
    """Implements PointService."""

    def __init__(
        self,
        desk: PointDesk,
        chains: ChainViewer,
        deleter: Deleter,
        operations: Operations,
        view: IntegrityView,
        unbroken: Unbroken,
    ) -> None:
        self._desk = desk
        self._chains = chains
        self._deleter = deleter
        self._operations = operations
        self._view = view
        self._unbroken = unbroken

    async def CommitPoint(self, request: point_pb2.CommitPointRequest, context: Any) -> point_pb2.Point:
        """Makes a restore point."""
        del context
        wanted = NewPoint(
            repository=request.repository_id,
            vm_uuid=request.vm_uuid,
            vm_name=request.vm_name,
            vm_context_id=request.vm_context_id,
            layer_ids=list(request.layer_ids),
            snapshot_at=convert.moment(request.snapshot_at) if request.HasField("snapshot_at") else None,
            hardware_json=request.hardware_json,
        )
        placed = await self._unbroken.run(self._desk.commit(convert.holder(request.holder), wanted))
        return await self._shown(placed)

    async def GetPoint(self, request: point_pb2.GetPointRequest, context: Any) -> point_pb2.Point:
        """Returns a committed point."""
        del context
        return await self._shown(await self._desk.get(request.backup_id))

    async def GetLatestPoint(self, request: point_pb2.GetLatestPointRequest, context: Any) -> point_pb2.Point:
        """Returns a VM's newest committed point."""
        del context
        return await self._shown(await self._desk.latest(request.repository_id, request.vm_uuid))

    async def _shown(self, placed: PlacedPoint) -> point_pb2.Point:
        """Returns a point with what is known of its files."""
        doubts = await self._doubts(placed.layers)
        return convert.point(placed, await self._view.of_point(placed.point), doubts)

    async def _doubts(self, layers: Sequence[LayerRecord]) -> convert.Doubts:
        return convert.Doubts(
            await self._view.damage_of(layers),
            await self._view.suspicions_of(layers),
            await self._view.verified_at(layers),
        )

    async def GetChains(self, request: point_pb2.GetChainsRequest, context: Any) -> point_pb2.GetChainsResponse:
        """Returns a VM's chains."""
        del context
        chains = await self._chains.of_context(request.vm_context_id)
        doubts = await self._doubts([layer for chain in chains for layer in chain.layers])
        return point_pb2.GetChainsResponse(chains=[convert.chain(each, doubts) for each in chains])

    async def DeletePoint(self, request: point_pb2.DeletePointRequest, context: Any) -> point_pb2.DeletePointResponse:
        """Removes a restore point."""
        del context
        if request.dry_run:
            plan = await self._deleter.plan([request.backup_id], cascade=request.cascade)
            plan.require_free()
            return point_pb2.DeletePointResponse(backup_ids=plan.backup_ids, freed_bytes=plan.freed_bytes)
        holder, backup_ids = convert.holder(request.holder), frozenset([request.backup_id])
        start = self._operations.delete(holder, backup_ids, cascade=request.cascade, wait_seconds=0)
        deletion = await self._operations.finished(await self._unbroken.run(start))
        return point_pb2.DeletePointResponse(backup_ids=deletion.backup_ids, freed_bytes=deletion.freed_bytes)

    async def LeasePoint(self, request: point_pb2.LeasePointRequest, context: Any) -> point_pb2.Lease:
        """Keeps a point as it is."""
        del context
        work = self._desk.lease(request.backup_id, request.holder, request.seconds)
        leased = await self._unbroken.run(work)
        return convert.lease(leased, await self._view.of_backup(request.backup_id))

    async def ReleaseLease(
        self, request: point_pb2.ReleaseLeaseRequest, context: Any
    ) -> point_pb2.ReleaseLeaseResponse:
        """Ends a lease."""
        del context
        await self._unbroken.run(self._desk.release(request.backup_id, request.holder))
        return point_pb2.ReleaseLeaseResponse()
