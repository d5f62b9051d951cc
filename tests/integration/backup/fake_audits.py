"""Fake of the repository service's port for audits: it samples every cluster that was not copied."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from backup_world import CLUSTER, World, refuse
from blake3 import blake3

from sendense.repository.v1 import audit_pb2, audit_pb2_grpc
from sendense_blockio.extents import Extent, split, subtract


class FakeAudits(audit_pb2_grpc.AuditServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def SampleUncopied(
        self, request: audit_pb2.SampleUncopiedRequest, context: Any
    ) -> AsyncIterator[audit_pb2.SamplePage]:
        await self._world.enter("SampleUncopied")
        layer = self._world.layers[request.layer_id]
        if layer.state != "sealed":
            refuse("LAYER_NOT_SEALED")
        page = audit_pb2.SamplePage()
        for block in split(subtract([Extent(0, len(layer.content))], layer.covered()), CLUSTER):
            digest = blake3(bytes(layer.content[block.offset : block.end])).digest()
            page.blocks.add(offset=block.offset, length=block.length, digest=digest)
        yield page

    async def MarkSuspect(self, request: audit_pb2.MarkSuspectRequest, context: Any) -> audit_pb2.MarkSuspectResponse:
        await self._world.enter("MarkSuspect")
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        parent = self._world.layers[request.layer_id].parent
        found = [point.backup_id for point in self._world.points if parent in point.layers]
        return audit_pb2.MarkSuspectResponse(backup_ids=found)
