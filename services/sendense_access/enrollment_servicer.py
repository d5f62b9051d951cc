"""The gRPC edge of enrolment."""
# ruff: noqa: ARG002  # request and context belong to gRPC's signature

from __future__ import annotations

from typing import Any

from sendense.access.v1 import access_pb2, enrollment_pb2, enrollment_pb2_grpc
from sendense_access.convert import to_agent
from sendense_access.enrollment import EnrollmentDesk
from sendense_rpc.identity import current_caller


class EnrollmentServicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """One-time codes for agents."""

    def __init__(self, desk: EnrollmentDesk) -> None:
        self._desk = desk

    async def CreateEnrollment(
        self, request: enrollment_pb2.CreateEnrollmentRequest, context: Any
    ) -> enrollment_pb2.Enrollment:
        """Makes an agent's file."""
        caller = current_caller()
        if caller is None:
            raise LookupError("a mutation is only ever made inside a call")
        made = await self._desk.create(
            request.agent_id, request.tunnel_address, request.lifetime_seconds, actor=caller.subject
        )
        answer = enrollment_pb2.Enrollment(
            agent_id=made.agent_id,
            code=made.code,
            tunnel_address=made.tunnel_address,
            tunnel_host_key=made.tunnel_host_key,
            jwks_json=made.jwks_json,
        )
        answer.expires_at.FromDatetime(made.expires_at)
        return answer

    async def RedeemEnrollment(self, request: enrollment_pb2.RedeemEnrollmentRequest, context: Any) -> access_pb2.Agent:
        """Records the key of whoever shows a code."""
        return to_agent(await self._desk.redeem(request.agent_id, request.code, request.public_key))
