"""The gRPC edge of audits: each RPC converts, calls one use case, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from sendense.repository.v1 import audit_pb2, audit_pb2_grpc
from sendense_blockio.errors import InvalidExtentError
from sendense_repository import convert
from sendense_repository.audit import AuditDesk
from sendense_repository.errors import InvalidValue
from sendense_repository.unbroken import Unbroken

MOST_AREAS = 10_000
MOST_SLICES = 1_000_000


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Implements AuditService."""

    def __init__(self, desk: AuditDesk, unbroken: Unbroken) -> None:
        self._desk = desk
        self._unbroken = unbroken

    async def SampleUncopied(
        self, request: audit_pb2.SampleUncopiedRequest, context: Any
    ) -> AsyncIterator[audit_pb2.SamplePage]:
        """Streams blocks that a backup did not copy."""
        del context
        if not 0 <= request.share <= 1:
            raise InvalidValue("share", f"{request.share} is not from 0 to 1")
        if request.blocks < 0 or not 0 <= request.slices <= MOST_SLICES:
            raise InvalidValue("blocks", f"neither blocks nor slices are below 0, slices at most {MOST_SLICES}")
        pages = self._desk.sample(
            request.layer_id,
            blocks=request.blocks,
            share=request.share,
            slices=request.slices,
            seed=request.seed,
        )
        async with aclosing(pages):  # type: ignore[type-var]
            async for page in pages:
                yield audit_pb2.SamplePage(
                    blocks=[
                        audit_pb2.SampleBlock(offset=block.offset, length=block.length, digest=digest)
                        for block, digest in page
                    ]
                )

    async def MarkSuspect(self, request: audit_pb2.MarkSuspectRequest, context: Any) -> audit_pb2.MarkSuspectResponse:
        """Marks restore points that may be wrong."""
        del context
        if not 0 < len(request.areas) <= MOST_AREAS:
            raise InvalidValue("areas", f"there are {len(request.areas)}, not 1 to {MOST_AREAS}")
        try:
            areas = [convert.extent(area) for area in request.areas]
        except InvalidExtentError as error:
            raise InvalidValue("areas", str(error)) from error
        work = self._desk.mark_suspect(convert.holder(request.holder), request.layer_id, areas, request.finding)
        return audit_pb2.MarkSuspectResponse(backup_ids=await self._unbroken.run(work))
