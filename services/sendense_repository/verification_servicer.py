"""The gRPC edge of verification: each RPC converts, calls one use case, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sendense.repository.v1 import verification_pb2, verification_pb2_grpc
from sendense_repository import convert
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.registry import Registry
from sendense_repository.store.integrity import VerificationRecord
from sendense_repository.unbroken import Unbroken
from sendense_repository.verification import VerificationDesk


class VerificationServicer(verification_pb2_grpc.VerificationServiceServicer):
    """Implements VerificationService."""

    def __init__(self, desk: VerificationDesk, view: IntegrityView, registry: Registry, unbroken: Unbroken) -> None:
        self._desk = desk
        self._view = view
        self._registry = registry
        self._unbroken = unbroken

    async def StartVerification(
        self, request: verification_pb2.StartVerificationRequest, context: Any
    ) -> verification_pb2.Verification:
        """Starts or joins a verification."""
        del context
        work = self._desk.start(
            request.verification_id,
            request.backup_id,
            bytes_per_second=request.bytes_per_second,
            max_age_seconds=request.max_age_seconds,
        )
        return await self._shown(await self._unbroken.run(work))

    async def GetVerification(
        self, request: verification_pb2.GetVerificationRequest, context: Any
    ) -> verification_pb2.Verification:
        """Returns a verification."""
        del context
        return await self._shown(await self._desk.get(request.verification_id))

    async def WatchVerification(
        self, request: verification_pb2.GetVerificationRequest, context: Any
    ) -> AsyncIterator[verification_pb2.Verification]:
        """Streams a verification until it has ended."""
        del context
        async for record in self._desk.watch(request.verification_id):
            yield await self._shown(record)

    async def CancelVerification(
        self, request: verification_pb2.CancelVerificationRequest, context: Any
    ) -> verification_pb2.Verification:
        """Stops a verification."""
        del context
        return await self._shown(await self._unbroken.run(self._desk.cancel(request.verification_id)))

    async def ListDuePoints(
        self, request: verification_pb2.ListDuePointsRequest, context: Any
    ) -> verification_pb2.ListDuePointsResponse:
        """Returns the points to verify next."""
        del context
        repository = await self._registry.get(request.repository_id)
        before = convert.moment(request.checked_before) if request.HasField("checked_before") else None
        due = await self._desk.due(repository.repository_id, before, max(0, request.limit))
        return verification_pb2.ListDuePointsResponse(backup_ids=due)

    async def _shown(self, record: VerificationRecord) -> verification_pb2.Verification:
        message = verification_pb2.Verification(
            verification_id=record.verification_id,
            backup_id=record.backup_id,
            state=record.state,
            total_bytes=record.total_bytes,
            done_bytes=record.done_bytes,
            error_reason=record.error_reason,
            error_message=record.error_message,
            started_at=convert.timestamp(record.started_at),
        )
        if record.ended_at is not None:
            message.ended_at.CopyFrom(convert.timestamp(record.ended_at))
        known = await self._view.of_backup(record.backup_id)
        if known is not None:
            message.integrity.CopyFrom(convert.integrity(known))
        return message
