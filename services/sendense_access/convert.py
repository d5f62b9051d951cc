"""From this service's values to its protobuf messages."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.access.v1 import access_pb2
from sendense_access.store import Agent, Token


def to_token(token: Token) -> access_pb2.Token:
    """Returns a token as a message."""
    return access_pb2.Token(
        token_id=token.token_id,
        subject=token.subject,
        role=token.role,
        created_at=_moment(token.created_at),
        expires_at=_moment(token.expires_at),
        revoked_at=_moment(token.revoked_at) if token.revoked_at else None,
    )


def to_agent(agent: Agent) -> access_pb2.Agent:
    """Returns an agent as a message."""
    return access_pb2.Agent(agent_id=agent.agent_id, public_key=agent.public_key, created_at=_moment(agent.created_at))


def _moment(value: datetime) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(value)
    return moment
