"""Fakes of the repository service's ports for making restore points: layers, journals, points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from backup_world import CLUSTER, FakeLayer, FakePoint, World, refuse, the_rest_fails

from sendense.repository.v1 import (
    layer_pb2,
    layer_pb2_grpc,
    point_pb2,
    point_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)
from sendense_blockio.extents import Extent, normalize, subtract, total
from sendense_rpc.errors import Kind


@the_rest_fails
class FakeRepositories(repository_pb2_grpc.RepositoryServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def ListRepositories(
        self, request: repository_pb2.ListRepositoriesRequest, context: Any
    ) -> repository_pb2.ListRepositoriesResponse:
        known = await self.GetRepository(repository_pb2.GetRepositoryRequest(repository_id="repo-1"), context)
        return repository_pb2.ListRepositoriesResponse(repositories=[known])

    async def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        await self._world.enter("GetRepository")
        if request.repository_id not in ("repo-1", "local"):
            refuse("REPOSITORY_NOT_FOUND", "known repositories: local", kind=Kind.NOT_FOUND)
        return repository_pb2.Repository(
            repository_id="repo-1",
            name="local",
            repository_type="local",
            path="/backups",
            enabled=self._world.enabled,
            available_size_bytes=self._world.room,
        )


@the_rest_fails
class FakeLayers(layer_pb2_grpc.LayerServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    def _find(self, layer_id: str) -> FakeLayer:
        return self._world.layers.get(layer_id) or refuse("LAYER_NOT_FOUND", kind=Kind.NOT_FOUND)

    async def CreateLayer(self, request: layer_pb2.CreateLayerRequest, context: Any) -> layer_pb2.Layer:
        world = self._world
        await world.enter("CreateLayer", request.holder.job_id)
        world.fence("repository", request.holder.job_id, request.holder.attempt)
        job, identity = request.holder.job_id, request.disk_identity
        mine = next((each for each in world.layers.values() if (each.job, each.identity) == (job, identity)), None)
        if mine is not None:
            return layer_message(mine)
        content = bytearray(request.virtual_size_bytes)
        chain = f"chain-{len(world.calls)}"
        if request.parent_layer_id:
            parent = self._find(request.parent_layer_id)
            latest = [point for point in world.points if point.vm_uuid == request.vm_uuid][-1]
            if parent.layer_id not in latest.layers or parent.state != "sealed":
                refuse("STALE_PARENT")
            content, chain = bytearray(parent.content), parent.chain
        number = world.disk_numbers.setdefault(
            (request.vm_uuid, identity), sum(1 for vm, _ in world.disk_numbers if vm == request.vm_uuid)
        )
        name = f"layer-{len(world.calls)}"
        layer = FakeLayer(
            layer_id=name,
            job=job,
            vm_uuid=request.vm_uuid,
            disk_id=number,
            identity=identity,
            kind="incremental" if request.parent_layer_id else "full",
            parent=request.parent_layer_id,
            chain=chain,
            change_id=request.change_id,
            content=content,
            path=f"/backups/{request.vm_uuid}/disk-{number}/{name}.qcow2.partial",
        )
        world.layers[name] = layer
        await world.enter("CreateLayer.answer")
        return layer_message(layer)

    async def SetAreas(self, requests: AsyncIterator[layer_pb2.SetAreasRequest], context: Any) -> layer_pb2.Areas:
        await self._world.enter("SetAreas")
        layer: FakeLayer | None = None
        areas: list[Extent] = []
        complete = False
        async for request in requests:
            complete = request.last
            if layer is None:
                self._world.fence("repository", request.holder.job_id, request.holder.attempt)
                layer = self._find(request.layer_id)
            areas.extend(Extent(area.offset, area.length) for area in request.areas)
        assert layer is not None
        if not complete:
            refuse("INVALID_FIELD", "the stream ended before its last message")
        areas = normalize(areas)
        if layer.areas not in (None, areas):
            refuse("AREAS_FIXED")
        layer.areas = areas
        return layer_pb2.Areas(count=len(areas), total_bytes=total(areas), digest="d")

    async def ListRemainingAreas(
        self, request: layer_pb2.ListRemainingAreasRequest, context: Any
    ) -> AsyncIterator[layer_pb2.AreaPage]:
        await self._world.enter("ListRemainingAreas")
        layer = self._find(request.layer_id)
        if layer.areas is None:
            refuse("AREAS_NOT_SET")
        for area in subtract(layer.areas, layer.covered()):
            yield layer_pb2.AreaPage(areas=[layer_pb2.Area(offset=area.offset, length=area.length)])

    async def AppendJournal(self, request: layer_pb2.AppendJournalRequest, context: Any) -> layer_pb2.JournalState:
        await self._world.enter("AppendJournal", request.holder.job_id)
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        layer = self._find(request.layer_id)
        if layer.state == "sealed":
            refuse("LAYER_SEALED")
        if request.sequence <= len(layer.batches):
            if layer.batches[request.sequence - 1] != request.entries:
                refuse("JOURNAL_SEQUENCE", f"batch {request.sequence} was another one")
        elif request.sequence == len(layer.batches) + 1:
            layer.batches.append(request.entries)
        else:
            refuse("JOURNAL_SEQUENCE", f"{request.sequence} comes after {len(layer.batches)}")
        await self._world.enter("AppendJournal.answer")
        return layer_pb2.JournalState(last_sequence=len(layer.batches), journaled_bytes=total(layer.covered()))

    async def SealLayer(self, request: layer_pb2.SealLayerRequest, context: Any) -> layer_pb2.Layer:
        await self._world.enter("SealLayer", request.holder.job_id)
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        layer = self._find(request.layer_id)
        if layer.state == "sealed":
            return layer_message(layer)
        if any(each.path == layer.path for each in self._world.exports.values()):
            refuse("LAYER_BUSY", "the layer is still exported")
        if layer.areas is None or layer.covered() != layer.areas:
            refuse("JOURNAL_INCOMPLETE")
        if not request.reason:
            refuse("INVALID_FIELD", "no reason")
        layer.state, layer.path = "sealed", layer.path.removesuffix(".partial")
        await self._world.enter("SealLayer.answer")
        return layer_message(layer)

    async def DiscardLayer(
        self, request: layer_pb2.DiscardLayerRequest, context: Any
    ) -> layer_pb2.DiscardLayerResponse:
        await self._world.enter("DiscardLayer", request.holder.job_id)
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        if any(request.layer_id in point.layers for point in self._world.points):
            refuse("LAYER_IN_USE")
        layer = self._world.layers.get(request.layer_id)
        if layer and any(each.path == layer.path for each in self._world.exports.values()):
            refuse("LAYER_BUSY", "the layer is still exported")
        self._world.layers.pop(request.layer_id, None)
        return layer_pb2.DiscardLayerResponse()


@the_rest_fails
class FakePoints(point_pb2_grpc.PointServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    def _message(self, point: FakePoint) -> point_pb2.Point:
        return point_pb2.Point(
            backup_id=point.backup_id,
            repository_id="repo-1",
            vm_uuid=point.vm_uuid,
            layers=[layer_message(self._world.layers[each]) for each in point.layers],
        )

    async def CommitPoint(self, request: point_pb2.CommitPointRequest, context: Any) -> point_pb2.Point:
        world = self._world
        await world.enter("CommitPoint", request.holder.job_id)
        world.fence("repository", request.holder.job_id, request.holder.attempt)
        known = next((each for each in world.points if each.backup_id == request.holder.job_id), None)
        if known is None:
            if any(world.layers[each].state != "sealed" for each in request.layer_ids):
                refuse("LAYER_NOT_SEALED")
            if not any(each.job == request.holder.job_id for vm in world.vms for each in vm.snapshots):
                refuse("SNAPSHOT_GONE", "the snapshot went before the commit")
            known = FakePoint(
                request.holder.job_id, request.vm_uuid, request.vm_context_id, request.vm_name, list(request.layer_ids)
            )
            world.points.append(known)
        await world.enter("CommitPoint.answer")
        return self._message(known)

    async def GetPoint(self, request: point_pb2.GetPointRequest, context: Any) -> point_pb2.Point:
        await self._world.enter("GetPoint")
        for each in self._world.points:
            if each.backup_id == request.backup_id:
                return self._message(each)
        return refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)  # type: ignore[no-any-return]

    async def GetLatestPoint(self, request: point_pb2.GetLatestPointRequest, context: Any) -> point_pb2.Point:
        await self._world.enter("GetLatestPoint")
        found = [each for each in self._world.points if each.vm_uuid == request.vm_uuid]
        return self._message(found[-1]) if found else refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)

    async def GetChains(self, request: point_pb2.GetChainsRequest, context: Any) -> point_pb2.GetChainsResponse:
        by_chain: dict[str, list[FakeLayer]] = defaultdict(list)
        for point in self._world.points:
            if point.context == request.vm_context_id:
                for each in point.layers:
                    by_chain[self._world.layers[each].chain].append(self._world.layers[each])
        return point_pb2.GetChainsResponse(
            chains=[
                point_pb2.Chain(
                    chain_id=chain,
                    disk_id=layers[0].disk_id,
                    full_backup_id=layers[0].job,
                    latest_backup_id=layers[-1].job,
                    total_backups=len(layers),
                    total_size_bytes=1000 * len(layers),
                    current=True,
                    layers=[layer_message(layer) for layer in layers],
                )
                for chain, layers in by_chain.items()
            ]
        )

    async def DeletePoint(self, request: point_pb2.DeletePointRequest, context: Any) -> point_pb2.DeletePointResponse:
        world = self._world
        await world.enter("DeletePoint")
        place = next(n for n, each in enumerate(world.points) if each.backup_id == request.backup_id)
        point = world.points[place]
        builders = [
            each
            for each in world.points[place + 1 :]
            if each.vm_uuid == point.vm_uuid and any(world.layers[x].parent for x in each.layers)
        ]
        if builders and not request.cascade:
            refuse("HAS_DEPENDANTS", ", ".join(each.backup_id for each in builders))
        gone = [*reversed(builders), point]
        if not request.dry_run:
            world.fence("repository", request.holder.job_id, request.holder.attempt)
            for each in gone:
                world.points.remove(each)
                for layer in each.layers:
                    del world.layers[layer]
        return point_pb2.DeletePointResponse(backup_ids=[each.backup_id for each in gone], freed_bytes=1000 * len(gone))


def layer_message(layer: FakeLayer) -> layer_pb2.Layer:
    return layer_pb2.Layer(
        layer_id=layer.layer_id,
        repository_id="repo-1",
        vm_uuid=layer.vm_uuid,
        disk_id=layer.disk_id,
        disk_identity=layer.identity,
        backup_type=layer.kind,
        backup_id=layer.job,
        parent_layer_id=layer.parent,
        chain_id=layer.chain,
        path=layer.path,
        virtual_size_bytes=len(layer.content),
        stored_bytes=1000,
        change_id=layer.change_id,
        state=layer.state,
        cluster_size_bytes=CLUSTER,
    )
