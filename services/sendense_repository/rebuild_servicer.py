"""The gRPC edge of rebuilding a catalogue from storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sendense.repository.v1 import rebuild_pb2, rebuild_pb2_grpc
from sendense_repository import convert
from sendense_repository.rebuild import Rebuilder
from sendense_repository.scan import Scanner
from sendense_repository.unbroken import Unbroken


class RebuildServicer(rebuild_pb2_grpc.RebuildServiceServicer):
    """Implements RebuildService."""

    def __init__(self, scanner: Scanner, rebuilder: Rebuilder, unbroken: Unbroken) -> None:
        self._scanner = scanner
        self._rebuilder = rebuilder
        self._unbroken = unbroken

    async def ListStoredPoints(
        self, request: rebuild_pb2.ListStoredPointsRequest, context: Any
    ) -> AsyncIterator[rebuild_pb2.StoredPoint]:
        """Streams the points that only storage has."""
        del context
        report = await self._unbroken.run(self._scanner.scan(request.repository_id))
        for stored in report.importable:
            yield convert.stored_point(stored, report.repository)

    async def AdoptPoints(
        self, request: rebuild_pb2.AdoptPointsRequest, context: Any
    ) -> rebuild_pb2.AdoptPointsResponse:
        """Writes the rows of points and their layers."""
        del context
        work = self._rebuilder.adopt(request.repository_id, list(request.backup_ids), request.vm_context_id)
        return rebuild_pb2.AdoptPointsResponse(backup_ids=await self._unbroken.run(work))
