"""The repository service's restore points that only storage knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC

from sendense.repository.v1 import rebuild_pb2, rebuild_pb2_grpc
from sendense_backup.clients.repository import to_layer
from sendense_backup.model import StoredPoint
from sendense_rpc.channel import Peer

SCAN_SECONDS = 3600.0
"""Looking at every sidecar of a large repository on a slow file server."""


class RebuildClient:
    """RebuildService."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = rebuild_pb2_grpc.RebuildServiceStub(peer.channel)

    async def stored_points(self, repository_id: str) -> AsyncIterator[StoredPoint]:
        """Yields the whole points that only storage knows, by VM, oldest first."""
        request = rebuild_pb2.ListStoredPointsRequest(repository_id=repository_id)
        stream = self._peer.stream(self._stub.ListStoredPoints, request, timeout=SCAN_SECONDS)
        async with aclosing(stream) as points:  # type: ignore[type-var]
            async for point in points:
                yield _point(point)

    async def adopt(self, repository_id: str, backup_ids: Sequence[str], vm_context_id: str) -> list[str]:
        """Has the repository write its rows of points; returns those that it did not know before."""
        request = rebuild_pb2.AdoptPointsRequest(
            repository_id=repository_id, backup_ids=backup_ids, vm_context_id=vm_context_id
        )
        answer = await self._peer.call(self._stub.AdoptPoints, request, timeout=SCAN_SECONDS)
        return list(answer.backup_ids)


def _point(message: rebuild_pb2.StoredPoint) -> StoredPoint:
    return StoredPoint(
        backup_id=message.backup_id,
        vm_uuid=message.vm_uuid,
        vm_name=message.vm_name,
        vm_context_id=message.vm_context_id,
        sequence=message.sequence,
        snapshot_at=message.snapshot_at.ToDatetime(UTC) if message.HasField("snapshot_at") else None,
        committed_at=message.committed_at.ToDatetime(UTC),
        previous_backup_id=message.previous_backup_id,
        hardware_json=message.hardware_json,
        layers=tuple(to_layer(layer) for layer in message.layers),
        reasons=tuple(message.reasons),
        copied_bytes=tuple(message.copied_bytes),
    )
