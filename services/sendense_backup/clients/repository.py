"""The repository service: layers, journals, restore points."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.repository.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    layer_pb2,
    layer_pb2_grpc,
    point_pb2,
    point_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)
from sendense_backup.clients.streams import send_all
from sendense_backup.model import Chain, Holder, Layer, Point, Repository
from sendense_rpc.channel import Peer
from sendense_rpc.errors import RemoteError

PLAN_SECONDS = 1800.0
"""Asking vCenter for the changed areas of a large disk takes many pages."""
SEAL_SECONDS = 3600.0
"""Checking a large image reads all of its metadata."""

POINT_NOT_FOUND = "POINT_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Areas:
    """What is to be copied, summed up."""

    count: int
    total_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A block that was not copied, and the BLAKE3 of what its chain gives."""

    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class NewLayer:
    """What a layer is made from; sizes in bytes."""

    repository_id: str
    vm_uuid: str
    disk_identity: str
    virtual_size_bytes: int
    parent_layer_id: str
    change_id: str


@dataclass(frozen=True, slots=True)
class NewPoint:
    """What a restore point is made from."""

    repository_id: str
    vm_uuid: str
    vm_name: str
    vm_context_id: str
    layer_ids: list[str]
    snapshot_at: datetime | None
    hardware_json: str


class RepositoryClient:
    """The repository service's three gRPC services."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._repositories = repository_pb2_grpc.RepositoryServiceStub(peer.channel)
        self._layers = layer_pb2_grpc.LayerServiceStub(peer.channel)
        self._points = point_pb2_grpc.PointServiceStub(peer.channel)
        self._audits = audit_pb2_grpc.AuditServiceStub(peer.channel)

    async def repository(self, name: str) -> Repository:
        """Returns a repository by id or name; REPOSITORY_NOT_FOUND lists the known ones."""
        request = repository_pb2.GetRepositoryRequest(repository_id=name)
        return _repository(await self._peer.call(self._repositories.GetRepository, request))

    async def repositories(self) -> list[Repository]:
        """Returns all repositories, with their room as last looked at."""
        request = repository_pb2.ListRepositoriesRequest()
        answer = await self._peer.call(self._repositories.ListRepositories, request)
        return [_repository(each) for each in answer.repositories]

    async def latest_point(self, repository_id: str, vm_uuid: str) -> Point | None:
        """Returns the VM's newest restore point in a repository."""
        request = point_pb2.GetLatestPointRequest(repository_id=repository_id, vm_uuid=vm_uuid.lower())
        return await self._point(self._points.GetLatestPoint, request)

    async def point(self, backup_id: str) -> Point | None:
        """Returns the restore point that a backup made."""
        return await self._point(self._points.GetPoint, point_pb2.GetPointRequest(backup_id=backup_id))

    async def create_layer(self, new: NewLayer, holder: Holder) -> Layer:
        """Makes an unsealed layer, or joins the one that the job has for this disk."""
        request = layer_pb2.CreateLayerRequest(
            holder=_holder(holder),
            repository_id=new.repository_id,
            vm_uuid=new.vm_uuid.lower(),
            disk_identity=new.disk_identity,
            virtual_size_bytes=new.virtual_size_bytes,
            parent_layer_id=new.parent_layer_id,
            change_id=new.change_id,
        )
        return to_layer(await self._peer.call(self._layers.CreateLayer, request, timeout=60.0))

    async def set_areas(self, layer_id: str, holder: Holder, pages: AsyncIterator[list[tuple[int, int]]]) -> Areas:
        """Fixes what is to be copied. An error of `pages` is raised as it is, and nothing is fixed."""

        async def requests() -> AsyncIterator[layer_pb2.SetAreasRequest]:
            yield layer_pb2.SetAreasRequest(holder=_holder(holder), layer_id=layer_id)
            async for page in pages:
                areas = [layer_pb2.Area(offset=offset, length=length) for offset, length in page]
                yield layer_pb2.SetAreasRequest(areas=areas)
            yield layer_pb2.SetAreasRequest(last=True)

        answer = await send_all(self._peer, self._layers.SetAreas, requests(), timeout=PLAN_SECONDS)
        return Areas(answer.count, answer.total_bytes, answer.digest)

    async def remaining_areas(self, layer_id: str) -> AsyncIterator[list[tuple[int, int]]]:
        """Yields what is still to be copied, in pages."""
        request = layer_pb2.ListRemainingAreasRequest(layer_id=layer_id)
        async with aclosing(self._peer.stream(self._layers.ListRemainingAreas, request)) as pages:  # type: ignore[type-var]
            async for page in pages:
                yield [(area.offset, area.length) for area in page.areas]

    async def append_journal(self, layer_id: str, holder: Holder, sequence: int, entries: bytes) -> int:
        """Commits a flushed batch and returns the bytes that the journal covers now."""
        request = layer_pb2.AppendJournalRequest(
            holder=_holder(holder), layer_id=layer_id, sequence=sequence, entries=entries
        )
        answer = await self._peer.call(self._layers.AppendJournal, request, timeout=60.0)
        return answer.journaled_bytes

    async def seal_layer(self, layer_id: str, holder: Holder, reason: str) -> Layer:
        """Checks a layer and makes it durable and read-only."""
        request = layer_pb2.SealLayerRequest(holder=_holder(holder), layer_id=layer_id, reason=reason)
        return to_layer(await self._peer.call(self._layers.SealLayer, request, timeout=SEAL_SECONDS))

    async def sample_uncopied(
        self, layer_id: str, *, blocks: int, share: float, slices: int, seed: int
    ) -> AsyncIterator[list[Sample]]:
        """Yields blocks that a sealed layer's backup did not copy, in pages, by offset."""
        request = audit_pb2.SampleUncopiedRequest(
            layer_id=layer_id, blocks=blocks, share=share, slices=slices, seed=seed
        )
        async with aclosing(self._peer.stream(self._audits.SampleUncopied, request)) as pages:  # type: ignore[type-var]
            async for page in pages:
                yield [Sample(block.offset, block.length, block.digest) for block in page.blocks]

    async def mark_suspect(
        self, layer_id: str, holder: Holder, areas: Sequence[tuple[int, int]], finding: str
    ) -> list[str]:
        """Marks the restore points that may be wrong because areas differ from the chain; returns them."""
        request = audit_pb2.MarkSuspectRequest(
            holder=_holder(holder),
            layer_id=layer_id,
            areas=[layer_pb2.Area(offset=offset, length=length) for offset, length in areas],
            finding=finding,
        )
        return list((await self._peer.call(self._audits.MarkSuspect, request, timeout=60.0)).backup_ids)

    async def discard_layer(self, layer_id: str, holder: Holder) -> None:
        """Removes a layer that belongs to no restore point."""
        request = layer_pb2.DiscardLayerRequest(holder=_holder(holder), layer_id=layer_id)
        await self._peer.call(self._layers.DiscardLayer, request, timeout=60.0)

    async def commit_point(self, new: NewPoint, holder: Holder) -> Point:
        """Makes the restore point, whole or not at all; again is no error."""
        request = point_pb2.CommitPointRequest(
            holder=_holder(holder),
            repository_id=new.repository_id,
            vm_uuid=new.vm_uuid.lower(),
            vm_name=new.vm_name,
            vm_context_id=new.vm_context_id,
            layer_ids=new.layer_ids,
            snapshot_at=_timestamp(new.snapshot_at),
            hardware_json=new.hardware_json,
        )
        return _point(await self._peer.call(self._points.CommitPoint, request, timeout=120.0))

    async def chains(self, vm_context_id: str) -> list[Chain]:
        """Returns a VM's chains, by disk, newest first."""
        request = point_pb2.GetChainsRequest(vm_context_id=vm_context_id)
        answer = await self._peer.call(self._points.GetChains, request)
        return [
            Chain(
                chain_id=each.chain_id,
                disk_id=each.disk_id,
                full_backup_id=each.full_backup_id,
                latest_backup_id=each.latest_backup_id,
                total_backups=each.total_backups,
                total_size_bytes=each.total_size_bytes,
                current=each.current,
                layers=tuple(to_layer(layer) for layer in each.layers),
            )
            for each in answer.chains
        ]

    async def _point(self, method: Any, request: Any) -> Point | None:
        try:
            return _point(await self._peer.call(method, request))
        except RemoteError as error:
            if error.reason == POINT_NOT_FOUND:
                return None
            raise


def _repository(found: repository_pb2.Repository) -> Repository:
    return Repository(
        repository_id=found.repository_id,
        name=found.name,
        repository_type=found.repository_type,
        path=found.path,
        enabled=found.enabled,
        available_size_bytes=found.available_size_bytes,
        total_size_bytes=found.total_size_bytes,
        full_at=found.full_at.ToDatetime(UTC) if found.HasField("full_at") else None,
    )


def _holder(holder: Holder) -> layer_pb2.Holder:
    return layer_pb2.Holder(job_id=holder.job_id, attempt=holder.attempt)


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def to_layer(layer: layer_pb2.Layer) -> Layer:
    """Returns a layer as the repository describes it."""
    return Layer(
        layer_id=layer.layer_id,
        disk_id=layer.disk_id,
        disk_identity=layer.disk_identity,
        backup_type=layer.backup_type,
        backup_id=layer.backup_id,
        chain_id=layer.chain_id,
        parent_layer_id=layer.parent_layer_id,
        path=layer.path,
        virtual_size_bytes=layer.virtual_size_bytes,
        stored_bytes=layer.stored_bytes,
        change_id=layer.change_id,
        cluster_size_bytes=layer.cluster_size_bytes,
        created_at=layer.created_at.ToDatetime(UTC) if layer.HasField("created_at") else None,
        damage=layer.damage,
        suspicion=layer.suspicion,
        verified_at=layer.verified_at.ToDatetime(UTC) if layer.HasField("verified_at") else None,
    )


def _point(point: point_pb2.Point) -> Point:
    layers = tuple(to_layer(each) for each in point.layers)
    return Point(point.backup_id, point.repository_id, point.vm_uuid, layers, point.hardware_json)
