"""What the tunnel asks other services: whose key it is (access), and to which agent an export is leased (exports)."""

from __future__ import annotations

import structlog

from sendense.access.v1 import access_pb2, access_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_rpc.channel import Peer
from sendense_rpc.errors import Kind, RemoteError

log = structlog.get_logger()

TIMEOUT = 5.0
"""Seconds for one question; an agent waits meanwhile."""


class AgentRegistry:
    """Knows the enrolled agents' keys, and enrols those who show a one-time code."""

    def __init__(self, access: Peer) -> None:
        self._access = access
        self._stub = access_pb2_grpc.AgentRegistryServiceStub(access.channel)
        self._enrollments = enrollment_pb2_grpc.EnrollmentServiceStub(access.channel)

    async def owner_of(self, public_key: str) -> str | None:
        """Returns the id of the agent that owns a public key (one line, OpenSSH's form); None when nobody does.

        A registry that cannot be asked owns no key either: the agent tries again later.
        """
        request = access_pb2.AuthenticateAgentRequest(public_key=public_key)
        try:
            agent = await self._access.call(self._stub.AuthenticateAgent, request, timeout=TIMEOUT)
        except RemoteError as error:
            if error.kind is not Kind.NOT_FOUND:
                log.warning("the agent registry could not be asked", error=str(error))
            return None
        return str(agent.agent_id)

    async def has_removed(self, agent_id: str, public_key: str) -> bool:
        """Tells whether a key is an agent's no more; a registry that cannot be asked has removed nobody."""
        request = access_pb2.AuthenticateAgentRequest(public_key=public_key)
        try:
            agent = await self._access.call(self._stub.AuthenticateAgent, request, timeout=TIMEOUT)
        except RemoteError as error:
            return error.kind is Kind.NOT_FOUND
        return bool(agent.agent_id != agent_id)

    async def redeem(self, agent_id: str, code: str, public_key: str) -> str:
        """Enrols a key for a one-time code; returns why not, empty when it is enrolled now."""
        request = enrollment_pb2.RedeemEnrollmentRequest(agent_id=agent_id, code=code, public_key=public_key)
        try:
            await self._access.call(self._enrollments.RedeemEnrollment, request, timeout=TIMEOUT)
        except RemoteError as error:
            return error.reason or str(error)
        return ""


class ExportLeases:
    """Knows to which agent an export is leased."""

    def __init__(self, exports: Peer) -> None:
        self._exports = exports
        self._stub = exports_pb2_grpc.ExportServiceStub(exports.channel)

    async def leased_to(self, export_name: str, agent_id: str) -> bool:
        """Tells whether an export exists and is leased to this agent; when in doubt it is not."""
        request = exports_pb2.GetExportRequest(export_name=export_name)
        try:
            export = await self._exports.call(self._stub.GetExport, request, timeout=TIMEOUT)
        except RemoteError as error:
            if error.kind is not Kind.NOT_FOUND:
                log.warning("the export catalogue could not be asked", export=export_name, error=str(error))
            return False
        return bool(agent_id) and str(export.agent_id) == agent_id
