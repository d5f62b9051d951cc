"""The edge of importing."""

from __future__ import annotations

from typing import Any

from sendense.backup.v1 import import_pb2, import_pb2_grpc
from sendense_backup.import_points import Importer


class ImportServicer(import_pb2_grpc.ImportServiceServicer):
    """ImportService."""

    def __init__(self, importer: Importer) -> None:
        self._importer = importer

    async def ImportPoints(
        self, request: import_pb2.ImportPointsRequest, context: Any
    ) -> import_pb2.ImportPointsResponse:
        """Imports restore points that only storage knows."""
        del context
        outcome = await self._importer.run(request.repository, list(request.backup_ids))
        return import_pb2.ImportPointsResponse(
            imported_backup_ids=outcome.backup_ids,
            refused=[
                import_pb2.RefusedImport(backup_id=each.backup_id, reason=each.reason, message=each.message)
                for each in outcome.refused
            ],
        )
