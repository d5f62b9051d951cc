"""A fake of the exports service: a name is never used twice, an image is exported once."""

from __future__ import annotations

from typing import Any

from backup_world import World, refuse, the_rest_fails

from sendense.exports.v1 import exports_pb2, exports_pb2_grpc


@the_rest_fails
class FakeExports(exports_pb2_grpc.ExportServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def CreateFileExport(self, request: exports_pb2.CreateFileExportRequest, context: Any) -> exports_pb2.Export:
        await self._world.enter("CreateFileExport", request.holder.job_id)
        self._world.fence("exports", request.holder.job_id, request.holder.attempt)
        known = self._world.exports.get(request.export_name)
        if known is None:
            if request.export_name in self._world.export_names:
                refuse("NAME_USED", f"{request.export_name} was used before")
            if any(each.path == request.path for each in self._world.exports.values()):
                refuse("IMAGE_BUSY")
        elif (known.path, known.holder.attempt) != (request.path, request.holder.attempt):
            refuse("EXPORT_EXISTS")
        self._world.export_names.add(request.export_name)
        self._world.exports[request.export_name] = request
        await self._world.enter("CreateFileExport.answer")
        return exports_pb2.Export(export_name=request.export_name, path=request.path, state="serving")

    async def DeleteExport(
        self, request: exports_pb2.DeleteExportRequest, context: Any
    ) -> exports_pb2.DeleteExportResponse:
        await self._world.enter("DeleteExport", request.holder.job_id)
        self._world.fence("exports", request.holder.job_id, request.holder.attempt)
        self._world.exports.pop(request.export_name, None)
        return exports_pb2.DeleteExportResponse()

    async def ListExports(
        self, request: exports_pb2.ListExportsRequest, context: Any
    ) -> exports_pb2.ListExportsResponse:
        await self._world.enter("ListExports")
        return exports_pb2.ListExportsResponse(
            exports=[
                exports_pb2.Export(export_name=name, path=each.path, state="serving", holder=each.holder.job_id)
                for name, each in sorted(self._world.exports.items())
            ]
        )
