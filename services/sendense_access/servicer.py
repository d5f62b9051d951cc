"""The gRPC edge: one use case a call, converted both ways."""
# ruff: noqa: ARG002  # request and context belong to gRPC's signature

from __future__ import annotations

from typing import Any

from sendense.access.v1 import access_pb2, access_pb2_grpc, audit_pb2, audit_pb2_grpc
from sendense_access.agents import AgentRegistry
from sendense_access.audit_desk import AuditDesk
from sendense_access.convert import (
    from_audit_request,
    from_event,
    to_agent,
    to_entry,
    to_explanation,
    to_token,
    to_verdict,
)
from sendense_access.explain import Explainer
from sendense_access.keys import SigningKey
from sendense_access.store import TokenFilter
from sendense_access.tokens import TokenIssuer
from sendense_rpc.identity import Caller, current_caller
from sendense_rpc.limits import Limits


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Tokens, and what they may do."""

    def __init__(self, tokens: TokenIssuer, explainer: Explainer, key: SigningKey) -> None:
        self._tokens = tokens
        self._explainer = explainer
        self._key = key

    async def CreateToken(self, request: access_pb2.CreateTokenRequest, context: Any) -> access_pb2.CreateTokenResponse:
        """Signs a token."""
        token, secret = await self._tokens.create(
            request.subject,
            request.role,
            request.lifetime_seconds,
            actor=_actor(),
            limits=Limits(frozenset(request.vms), frozenset(request.repositories)),
            request_id=request.request_id,
        )
        return access_pb2.CreateTokenResponse(token=to_token(token), secret=secret)

    async def GetToken(self, request: access_pb2.GetTokenRequest, context: Any) -> access_pb2.Token:
        """Returns an issued token."""
        return to_token(await self._tokens.get(request.token_id))

    async def ListTokens(self, request: access_pb2.ListTokensRequest, context: Any) -> access_pb2.ListTokensResponse:
        """Lists issued tokens."""
        chosen = TokenFilter(subject=request.subject, role=request.role, state=request.state)
        tokens, next_page = await self._tokens.list(request.page_size, request.page_token, chosen)
        return access_pb2.ListTokensResponse(tokens=map(to_token, tokens), next_page_token=next_page)

    async def RevokeToken(self, request: access_pb2.RevokeTokenRequest, context: Any) -> access_pb2.Token:
        """Makes a token worthless."""
        return to_token(await self._tokens.revoke(request.token_id, actor=_actor()))

    async def ExplainAccess(
        self, request: access_pb2.ExplainAccessRequest, context: Any
    ) -> access_pb2.ExplainAccessResponse:
        """Says whether a token may make a call."""
        return to_explanation(
            await self._explainer.explain(_caller(), request.rpc, request.token_id, request.vm, request.repository)
        )

    async def GetTrust(self, request: access_pb2.GetTrustRequest, context: Any) -> access_pb2.Trust:
        """Returns what tokens are verified with."""
        return access_pb2.Trust(jwks_json=self._key.jwks_json(), revoked_token_ids=await self._tokens.revoked_ids())


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """The audit log."""

    def __init__(self, desk: AuditDesk) -> None:
        self._desk = desk

    async def ListAuditEntries(
        self, request: audit_pb2.ListAuditEntriesRequest, context: Any
    ) -> audit_pb2.ListAuditEntriesResponse:
        """Lists entries, newest first."""
        entries, next_page = await self._desk.list(request.page_size, request.page_token, from_audit_request(request))
        return audit_pb2.ListAuditEntriesResponse(entries=map(to_entry, entries), next_page_token=next_page)

    async def VerifyAudit(self, request: audit_pb2.VerifyAuditRequest, context: Any) -> audit_pb2.VerifyAuditResponse:
        """Walks the chain."""
        return to_verdict(await self._desk.verify())

    async def RecordAuditEvents(
        self, request: audit_pb2.RecordAuditEventsRequest, context: Any
    ) -> audit_pb2.RecordAuditEventsResponse:
        """Appends what other services report."""
        await self._desk.append([from_event(event) for event in request.events])
        return audit_pb2.RecordAuditEventsResponse()


class AgentRegistryServicer(access_pb2_grpc.AgentRegistryServiceServicer):
    """Agents' keys."""

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry

    async def EnrollAgent(self, request: access_pb2.EnrollAgentRequest, context: Any) -> access_pb2.Agent:
        """Records an agent's key."""
        return to_agent(await self._registry.enrol(request.agent_id, request.public_key, actor=_actor()))

    async def ListAgents(self, request: access_pb2.ListAgentsRequest, context: Any) -> access_pb2.ListAgentsResponse:
        """Lists enrolled agents."""
        agents, next_page = await self._registry.list(request.page_size, request.page_token)
        return access_pb2.ListAgentsResponse(agents=map(to_agent, agents), next_page_token=next_page)

    async def GetAgent(self, request: access_pb2.GetAgentRequest, context: Any) -> access_pb2.Agent:
        """Returns an enrolled agent."""
        return to_agent(await self._registry.get(request.agent_id))

    async def RemoveAgent(self, request: access_pb2.RemoveAgentRequest, context: Any) -> access_pb2.Agent:
        """Forgets an agent's key."""
        return to_agent(await self._registry.remove(request.agent_id, actor=_actor()))

    async def AuthenticateAgent(self, request: access_pb2.AuthenticateAgentRequest, context: Any) -> access_pb2.Agent:
        """Tells whose key it is."""
        return to_agent(await self._registry.authenticate(request.public_key))


def _actor() -> str:
    return _caller().subject


def _caller() -> Caller:
    caller = current_caller()
    if caller is None:
        raise LookupError("use cases of people are only ever run inside a call")
    return caller
