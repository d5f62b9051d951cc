"""DiskService: the edge between gRPC and whole disks."""

from __future__ import annotations

from typing import Any

from sendense.restore.v1 import disk_pb2, disk_pb2_grpc
from sendense_restore.convert import disk_export_message, served_message
from sendense_restore.disk_exports import DiskExports
from sendense_restore.served_points import ServedPoints


class DiskServicer(disk_pb2_grpc.DiskServiceServicer):
    """Serves whole disks; contracts are in disk.proto."""

    def __init__(self, exports: DiskExports, served: ServedPoints) -> None:
        self._exports = exports
        self._served = served

    async def StartDiskExport(self, request: disk_pb2.StartDiskExportRequest, context: Any) -> disk_pb2.DiskExport:
        """Begins to write a disk into a file."""
        del context
        export = await self._exports.start(request.backup_id, request.disk_id, request.format, force=request.force)
        return disk_export_message(export)

    async def GetDiskExport(self, request: disk_pb2.GetDiskExportRequest, context: Any) -> disk_pb2.DiskExport:
        """Returns an export."""
        del context
        return disk_export_message(await self._exports.admitted(request.export_id))

    async def ListDiskExports(
        self, request: disk_pb2.ListDiskExportsRequest, context: Any
    ) -> disk_pb2.ListDiskExportsResponse:
        """Lists exports."""
        del request, context
        exports = [disk_export_message(export) for export in await self._exports.all_admitted()]
        return disk_pb2.ListDiskExportsResponse(exports=exports)

    async def DeleteDiskExport(
        self, request: disk_pb2.DeleteDiskExportRequest, context: Any
    ) -> disk_pb2.DeleteDiskExportResponse:
        """Ends an export."""
        del context
        await self._exports.delete(request.export_id)
        return disk_pb2.DeleteDiskExportResponse()

    async def ServePoint(self, request: disk_pb2.ServePointRequest, context: Any) -> disk_pb2.ServedPoint:
        """Offers a point over NBD."""
        del context
        return served_message(await self._served.serve(request.backup_id, force=request.force))

    async def ListServedPoints(
        self, request: disk_pb2.ListServedPointsRequest, context: Any
    ) -> disk_pb2.ListServedPointsResponse:
        """Lists offers."""
        del request, context
        points = [served_message(served) for served in await self._served.all_admitted()]
        return disk_pb2.ListServedPointsResponse(points=points)

    async def StopServing(self, request: disk_pb2.StopServingRequest, context: Any) -> disk_pb2.StopServingResponse:
        """Ends an offer."""
        del context
        await self._served.stop(request.served_id)
        return disk_pb2.StopServingResponse()
