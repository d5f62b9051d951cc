"""The gRPC edge of deletions and consolidations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sendense.repository.v1 import maintenance_pb2, maintenance_pb2_grpc
from sendense_repository import convert, maintenance_convert
from sendense_repository.deletion import Deleter
from sendense_repository.errors import InvalidValue
from sendense_repository.operations import Operations
from sendense_repository.unbroken import Unbroken

MOST_POINTS = 10_000
"""Points of one request."""


class MaintenanceServicer(maintenance_pb2_grpc.MaintenanceServiceServicer):
    """Implements MaintenanceService."""

    def __init__(self, deleter: Deleter, operations: Operations, unbroken: Unbroken) -> None:
        self._deleter = deleter
        self._operations = operations
        self._unbroken = unbroken

    async def PlanDeletion(
        self, request: maintenance_pb2.PlanDeletionRequest, context: Any
    ) -> maintenance_pb2.DeletionPlan:
        """Says what a deletion would do."""
        del context
        plan = await self._deleter.plan(_backup_ids(request.backup_ids), cascade=request.cascade)
        return maintenance_convert.plan(plan)

    async def StartDeletion(
        self, request: maintenance_pb2.StartDeletionRequest, context: Any
    ) -> maintenance_pb2.Operation:
        """Starts or joins a deletion."""
        del context
        work = self._operations.delete(
            convert.holder(request.holder),
            _backup_ids(request.backup_ids),
            cascade=request.cascade,
            wait_seconds=request.wait_seconds,
        )
        return maintenance_convert.operation(await self._unbroken.run(work))

    async def StartConsolidation(
        self, request: maintenance_pb2.StartConsolidationRequest, context: Any
    ) -> maintenance_pb2.Operation:
        """Starts or joins a consolidation."""
        del context
        work = self._operations.consolidate(
            convert.holder(request.holder),
            request.first_backup_id,
            request.last_backup_id,
            wait_seconds=request.wait_seconds,
        )
        return maintenance_convert.operation(await self._unbroken.run(work))

    async def GetOperation(
        self, request: maintenance_pb2.GetOperationRequest, context: Any
    ) -> maintenance_pb2.Operation:
        """Returns an operation."""
        del context
        return maintenance_convert.operation(self._operations.get(request.operation_id))

    async def WatchOperation(
        self, request: maintenance_pb2.GetOperationRequest, context: Any
    ) -> AsyncIterator[maintenance_pb2.Operation]:
        """Streams an operation until it has ended."""
        del context
        async for operation in self._operations.watch(request.operation_id):
            yield maintenance_convert.operation(operation)


def _backup_ids(given: Any) -> frozenset[str]:
    backup_ids = frozenset(given)
    if not backup_ids or len(backup_ids) > MOST_POINTS:
        raise InvalidValue("backup_ids", f"name 1 to {MOST_POINTS} points, not {len(backup_ids)}")
    return backup_ids
