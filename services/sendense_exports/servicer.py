"""The gRPC edge: one use case a call, converted both ways."""

# ruff: noqa: ARG002 - gRPC gives each method a request and a context, needed or not

from __future__ import annotations

from typing import Any, cast

from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_exports.catalogue import Catalogue
from sendense_exports.convert import decode_page, encode_page, from_holder, page_limit, to_export
from sendense_exports.exportconf import ImageFormat

DEFAULT_WAIT_SECONDS = 10


class ExportServicer(exports_pb2_grpc.ExportServiceServicer):
    """Exports."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def CreateFileExport(self, request: exports_pb2.CreateFileExportRequest, context: Any) -> exports_pb2.Export:
        """Serves a file."""
        export = await self._catalogue.create(
            request.export_name,
            request.path,
            cast("ImageFormat", request.format),
            kind="file",
            read_only=request.read_only,
            holder=from_holder(request.holder),
            agent_id=request.agent_id,
        )
        return to_export(export)

    async def CreateBlockExport(
        self, request: exports_pb2.CreateBlockExportRequest, context: Any
    ) -> exports_pb2.Export:
        """Serves a block device."""
        export = await self._catalogue.create(
            request.export_name,
            request.device,
            "raw",
            kind="block",
            read_only=request.read_only,
            holder=from_holder(request.holder),
            agent_id="",
        )
        return to_export(export)

    async def GetExport(self, request: exports_pb2.GetExportRequest, context: Any) -> exports_pb2.Export:
        """Returns one export."""
        return to_export(await self._catalogue.get(request.export_name))

    async def ListExports(
        self, request: exports_pb2.ListExportsRequest, context: Any
    ) -> exports_pb2.ListExportsResponse:
        """Lists exports by name."""
        limit = page_limit(request.page_size)
        exports = await self._catalogue.list(limit + 1, decode_page(request.page_token))
        following = encode_page(exports[limit - 1].name) if len(exports) > limit else ""
        return exports_pb2.ListExportsResponse(exports=map(to_export, exports[:limit]), next_page_token=following)

    async def DeleteExport(
        self, request: exports_pb2.DeleteExportRequest, context: Any
    ) -> exports_pb2.DeleteExportResponse:
        """Stops serving."""
        await self._catalogue.delete(
            request.export_name,
            from_holder(request.holder),
            wait_seconds=request.wait_seconds or DEFAULT_WAIT_SECONDS,
            force=request.force,
        )
        return exports_pb2.DeleteExportResponse()

    async def ReloadExports(
        self, request: exports_pb2.ReloadExportsRequest, context: Any
    ) -> exports_pb2.ReloadExportsResponse:
        """Makes nbdd read its configuration again."""
        return exports_pb2.ReloadExportsResponse(generation=await self._catalogue.reload())
