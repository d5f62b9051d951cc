"""From this service's values to its protobuf messages."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.access.v1 import access_pb2, audit_pb2
from sendense_access.audit import Entry, Event
from sendense_access.audit_desk import Verdict
from sendense_access.explain import Explanation
from sendense_access.store import Agent, AuditFilter, Token


def to_token(token: Token) -> access_pb2.Token:
    """Returns a token as a message."""
    return access_pb2.Token(
        token_id=token.token_id,
        subject=token.subject,
        role=token.role,
        created_at=_moment(token.created_at),
        expires_at=_moment(token.expires_at),
        revoked_at=_moment(token.revoked_at) if token.revoked_at else None,
        vms=sorted(token.limits.vms),
        repositories=sorted(token.limits.repositories),
    )


def to_agent(agent: Agent) -> access_pb2.Agent:
    """Returns an agent as a message."""
    return access_pb2.Agent(agent_id=agent.agent_id, public_key=agent.public_key, created_at=_moment(agent.created_at))


def to_explanation(explained: Explanation) -> access_pb2.ExplainAccessResponse:
    """Returns an explanation as a message."""
    return access_pb2.ExplainAccessResponse(
        allowed=not explained.reason,
        reason=explained.reason,
        message=explained.message,
        rpc=explained.rpc,
        role_needed=explained.role_needed,
        role_held=explained.role_held,
        subject=explained.subject,
        token_id=explained.token_id,
        expires_at=_moment(explained.expires_at) if explained.expires_at else None,
        vms=sorted(explained.limits.vms),
        repositories=sorted(explained.limits.repositories),
    )


def to_entry(entry: Entry) -> audit_pb2.AuditEntry:
    """Returns an entry of the audit log as a message."""
    event = entry.event
    return audit_pb2.AuditEntry(
        sequence=entry.sequence,
        created_at=_moment(entry.at),
        actor=event.actor,
        token_id=event.token_id,
        action=event.action,
        target=event.target,
        result=event.result,
        source=event.source,
        request_id=event.request_id,
        detail=event.detail,
        entry_hash=entry.entry_hash,
    )


def to_verdict(verdict: Verdict) -> audit_pb2.VerifyAuditResponse:
    """Returns what a verification found as a message."""
    return audit_pb2.VerifyAuditResponse(
        intact=not verdict.broken_sequence,
        entries=verdict.entries,
        broken_sequence=verdict.broken_sequence,
        problem=verdict.problem,
        head_hash=verdict.head_hash,
    )


def from_event(message: audit_pb2.AuditEvent) -> Event:
    """Returns a reported event; when it happened is kept in its detail, since an entry's time is that of appending."""
    return Event(
        actor=message.actor,
        action=message.action,
        target=message.target,
        result=message.result,
        detail=f"at {message.occurred_at.ToJsonString()}" if message.HasField("occurred_at") else "",
        source=message.source,
        request_id=message.request_id,
        token_id=message.token_id,
        event_id=message.event_id,
    )


def from_audit_request(request: audit_pb2.ListAuditEntriesRequest) -> AuditFilter:
    """Returns which entries are asked for."""
    return AuditFilter(
        actor=request.actor,
        action=request.action,
        result=request.result,
        target=request.target,
        request_id=request.logged_request_id,
        created_after=_read(request, "created_after"),
        created_before=_read(request, "created_before"),
    )


def _read(request: audit_pb2.ListAuditEntriesRequest, field: str) -> datetime | None:
    moment: Timestamp = getattr(request, field)
    return moment.ToDatetime(tzinfo=UTC) if request.HasField(field) else None  # type: ignore[arg-type]


def _moment(value: datetime) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(value)
    return moment
