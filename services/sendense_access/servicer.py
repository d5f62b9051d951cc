"""The gRPC edge: one use case a call, converted both ways."""
# ruff: noqa: ARG002  # request and context belong to gRPC's signature

from __future__ import annotations

from typing import Any

from sendense.access.v1 import access_pb2, access_pb2_grpc
from sendense_access.agents import AgentRegistry
from sendense_access.convert import to_agent, to_token
from sendense_access.tokens import TokenIssuer
from sendense_rpc.identity import current_caller


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Tokens."""

    def __init__(self, tokens: TokenIssuer) -> None:
        self._tokens = tokens

    async def CreateToken(self, request: access_pb2.CreateTokenRequest, context: Any) -> access_pb2.CreateTokenResponse:
        """Signs a token."""
        token, secret = await self._tokens.create(
            request.subject, request.role, request.lifetime_seconds, actor=_actor()
        )
        return access_pb2.CreateTokenResponse(token=to_token(token), secret=secret)

    async def ListTokens(self, request: access_pb2.ListTokensRequest, context: Any) -> access_pb2.ListTokensResponse:
        """Lists issued tokens."""
        tokens, next_page = await self._tokens.list(request.page_size, request.page_token)
        return access_pb2.ListTokensResponse(tokens=map(to_token, tokens), next_page_token=next_page)

    async def RevokeToken(self, request: access_pb2.RevokeTokenRequest, context: Any) -> access_pb2.Token:
        """Makes a token worthless."""
        return to_token(await self._tokens.revoke(request.token_id, actor=_actor()))


class AgentRegistryServicer(access_pb2_grpc.AgentRegistryServiceServicer):
    """Agents' keys."""

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry

    async def EnrollAgent(self, request: access_pb2.EnrollAgentRequest, context: Any) -> access_pb2.Agent:
        """Records an agent's key."""
        return to_agent(await self._registry.enrol(request.agent_id, request.public_key, actor=_actor()))

    async def ListAgents(self, request: access_pb2.ListAgentsRequest, context: Any) -> access_pb2.ListAgentsResponse:
        """Lists enrolled agents."""
        return access_pb2.ListAgentsResponse(agents=map(to_agent, await self._registry.list()))

    async def RemoveAgent(self, request: access_pb2.RemoveAgentRequest, context: Any) -> access_pb2.Agent:
        """Forgets an agent's key."""
        return to_agent(await self._registry.remove(request.agent_id, actor=_actor()))

    async def AuthenticateAgent(self, request: access_pb2.AuthenticateAgentRequest, context: Any) -> access_pb2.Agent:
        """Tells whose key it is."""
        return to_agent(await self._registry.authenticate(request.public_key))


def _actor() -> str:
    caller = current_caller()
    if caller is None:
        raise LookupError("a mutation is only ever made inside a call")
    return caller.subject
