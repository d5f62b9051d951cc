"""The access service's tables: issued tokens (never their secrets), agents, the audit log, repeated requests."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, String, Table, Text

from sendense_db.columns import UtcDateTime, one_of
from sendense_db.engine import new_metadata
from sendense_db.requests import requests_table

metadata = new_metadata()

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("subject", String(191), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("limits_json", Text, nullable=False, server_default=""),
    one_of("role", "viewer", "restore", "operator", "admin"),
)

agents = Table(
    "agents",
    metadata,
    Column("agent_id", String(63), primary_key=True),
    Column("public_key", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
)
# A key belongs to one living agent; a removed agent's key may be enrolled again.
Index(
    "uq_agents_fingerprint",
    agents.c.fingerprint,
    unique=True,
    sqlite_where=agents.c.deleted_at.is_(None),
    postgresql_where=agents.c.deleted_at.is_(None),
)

agent_enrollments = Table(
    "agent_enrollments",
    metadata,
    Column("agent_id", String(63), primary_key=True),
    # SHA-256 of the one-time code, which is kept nowhere.
    Column("code_digest", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("redeemed_at", UtcDateTime),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(191), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(191), nullable=False),
    Column("result", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    # Unique: two entries cannot follow the same one, whatever the database's isolation.
    Column("previous_hash", String(64), nullable=False, unique=True),
    Column("entry_hash", String(64), nullable=False, unique=True),
    Column("source", String(64), nullable=False, server_default=""),
    Column("request_id", String(64), nullable=False, server_default=""),
    Column("token_id", String(64), nullable=False, server_default=""),
    Column("event_id", String(64), nullable=False, server_default="", index=True),
    Index(None, "at"),
)

requests = requests_table(metadata, "access")
