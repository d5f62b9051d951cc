"""Hand-written fakes of the two services that the tunnel asks: the agent registry and the export catalogue."""

from __future__ import annotations

from typing import Any

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.server import Service, Servicer


def _not_found(what: str) -> SendenseError:
    return SendenseError(f"no {what}", kind=Kind.NOT_FOUND, reason=f"{what.upper()}_NOT_FOUND")


def _the_rest_fails(cls: Any) -> Any:
    """Gives a fake the RPCs of its port that the tunnel does not call: they fail the test."""
    (port,) = cls.__bases__

    async def unused(self: Any, request: Any, context: Any) -> Any:
        raise AssertionError(f"{port.__name__}: an RPC that the tunnel does not use was called")

    for name in vars(port):
        if name[0].isupper() and name not in vars(cls):
            setattr(cls, name, unused)
    return cls


@_the_rest_fails
class AgentRegistryFake(access_pb2_grpc.AgentRegistryServiceServicer):
    """Knows the keys that a test enrolled: `keys[public key without comment] = agent id`."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}

    def enroll(self, agent_id: str, public_key: str) -> None:
        self.keys[" ".join(public_key.split()[:2])] = agent_id

    async def AuthenticateAgent(self, request: access_pb2.AuthenticateAgentRequest, context: Any) -> access_pb2.Agent:
        key = " ".join(request.public_key.split()[:2])
        if key not in self.keys:
            raise _not_found("agent")
        return access_pb2.Agent(agent_id=self.keys[key], public_key=key)

    def service(self) -> Service:
        async def healthy() -> None:
            return

        servicer = Servicer(
            "sendense.access.v1.AgentRegistryService",
            self,
            access_pb2_grpc.add_AgentRegistryServiceServicer_to_server,
        )
        return Service("access", [servicer], healthy)


@_the_rest_fails
class ExportCatalogueFake(exports_pb2_grpc.ExportServiceServicer):
    """Knows the leases that a test gave: `leases[export name] = agent id`."""

    def __init__(self) -> None:
        self.leases: dict[str, str] = {}

    async def GetExport(self, request: exports_pb2.GetExportRequest, context: Any) -> exports_pb2.Export:
        if request.export_name not in self.leases:
            raise _not_found("export")
        return exports_pb2.Export(export_name=request.export_name, agent_id=self.leases[request.export_name])

    def service(self) -> Service:
        async def healthy() -> None:
            return

        servicer = Servicer(
            "sendense.exports.v1.ExportService", self, exports_pb2_grpc.add_ExportServiceServicer_to_server
        )
        return Service("exports", [servicer], healthy)
