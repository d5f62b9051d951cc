"""The exports service: serves a layer to an agent while it is written."""

from __future__ import annotations

from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_backup.model import Holder
from sendense_rpc.channel import Peer

REMOVAL_WAIT_SECONDS = 10
"""How long clients get to leave before they are cut off."""


class ExportsClient:
    """The exports service's gRPC."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = exports_pb2_grpc.ExportServiceStub(peer.channel)

    async def serve_layer(self, name: str, path: str, holder: Holder, agent_id: str) -> None:
        """Serves a QCOW2 layer for writing, to one agent."""
        request = exports_pb2.CreateFileExportRequest(
            export_name=name,
            path=path,
            format="qcow2",
            read_only=False,
            holder=exports_pb2.Holder(job_id=holder.job_id, attempt=holder.attempt),
            agent_id=agent_id,
        )
        await self._peer.call(self._stub.CreateFileExport, request, timeout=60.0)

    async def stop_serving(self, name: str, holder: Holder, *, wait_seconds: int = REMOVAL_WAIT_SECONDS) -> None:
        """Stops serving; clients that do not leave in time are cut off. What is not served is no error."""
        request = exports_pb2.DeleteExportRequest(
            export_name=name,
            holder=exports_pb2.Holder(job_id=holder.job_id, attempt=holder.attempt),
            wait_seconds=wait_seconds,
            force=True,
        )
        await self._peer.call(self._stub.DeleteExport, request, timeout=wait_seconds + 60.0)

    async def held(self) -> list[tuple[str, str]]:
        """Returns the exports that somebody holds, each with its holder."""
        found: list[tuple[str, str]] = []
        token = ""
        while True:
            request = exports_pb2.ListExportsRequest(page_size=1000, page_token=token)
            page = await self._peer.call(self._stub.ListExports, request)
            found.extend((each.export_name, each.holder) for each in page.exports if each.holder)
            token = page.next_page_token
            if not token:
                return found
