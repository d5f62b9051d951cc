"""The access service's tables: issued tokens (never their secrets), enrolled agents, the audit log.

Every mutation takes the audit event that records it and writes both in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, Integer, RowMapping, String, Table, Text, and_, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_access.audit import GENESIS, Entry, Event, chained
from sendense_db.columns import UtcDateTime, one_of, utc_now
from sendense_db.engine import Database, new_metadata

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
)

_AUDIT_LOCK = 0x5E4D_0A0D
"""PostgreSQL advisory lock that orders the writers of the audit log."""


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token without its secret; `revoked_at` is None while it is good."""

    token_id: str
    subject: str
    role: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """An enrolled agent; `public_key` is `ssh-ed25519 <base64>`, `fingerprint` its SHA-256 in hex."""

    agent_id: str
    public_key: str
    fingerprint: str
    created_at: datetime
    deleted_at: datetime | None = None


class AccessStore:
    """Reads and writes the access service's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_token(self, token: Token, event: Event) -> None:
        """Records an issued token."""
        async with self._database.begin() as connection:
            await connection.execute(
                api_tokens.insert().values(
                    id=token.token_id,
                    subject=token.subject,
                    role=token.role,
                    created_at=token.created_at,
                    expires_at=token.expires_at,
                )
            )
            await _append_audit(connection, event)

    async def token(self, token_id: str) -> Token | None:
        """Returns a token, or None when it was never issued here."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(api_tokens).where(api_tokens.c.id == token_id))).mappings().first()
        return _token(row) if row else None

    async def tokens(self, limit: int, after: tuple[datetime, str] | None) -> list[Token]:
        """Returns at most `limit` tokens, newest first, that come after the one with this time and id."""
        query = select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.id.desc()).limit(limit)
        if after:
            at, token_id = after
            older = api_tokens.c.created_at < at
            query = query.where(or_(older, and_(api_tokens.c.created_at == at, api_tokens.c.id < token_id)))
        async with self._database.read() as connection:
            return [_token(row) for row in (await connection.execute(query)).mappings()]

    async def revoke_token(self, token_id: str, event: Event) -> Token | None:
        """Marks a token as revoked, the first time only; returns it as it is now, or None when there is none."""
        async with self._database.begin() as connection:
            changed = await connection.execute(
                api_tokens.update()
                .where(api_tokens.c.id == token_id, api_tokens.c.revoked_at.is_(None))
                .values(revoked_at=utc_now())
            )
            if changed.rowcount:
                await _append_audit(connection, event)
            row = (await connection.execute(select(api_tokens).where(api_tokens.c.id == token_id))).mappings().first()
        return _token(row) if row else None

    async def revoked_ids(self, now: datetime) -> list[str]:
        """Returns the ids of revoked tokens that have not expired by `now`."""
        query = select(api_tokens.c.id).where(api_tokens.c.revoked_at.is_not(None), api_tokens.c.expires_at > now)
        async with self._database.read() as connection:
            return sorted((await connection.execute(query)).scalars())

    async def enrol_agent(self, agent: Agent, event: Event) -> Agent:
        """Records an agent unless another living agent has its name or its key.

        Returns:
            The living agent that has this name or this key afterwards: `agent` itself, or the one in the way.
        """
        living = agents.c.deleted_at.is_(None)
        same = or_(agents.c.agent_id == agent.agent_id, agents.c.fingerprint == agent.fingerprint)
        # An agent that has the name comes before one that only has the key.
        order = (agents.c.agent_id == agent.agent_id).desc()
        async with self._database.begin() as connection:
            query = select(agents).where(living, same).order_by(order)
            row = (await connection.execute(query)).mappings().first()
            if row:
                return _agent(row)
            values = {
                "public_key": agent.public_key,
                "fingerprint": agent.fingerprint,
                "created_at": agent.created_at,
                "deleted_at": None,
            }
            # A removed agent's row lives again: what other rows say of this agent stays true.
            revived = await connection.execute(
                agents.update().where(agents.c.agent_id == agent.agent_id).values(values)
            )
            if not revived.rowcount:
                await connection.execute(agents.insert().values(agent_id=agent.agent_id, **values))
            await _append_audit(connection, event)
        return agent

    async def agents(self) -> list[Agent]:
        """Returns all living agents, by name."""
        query = select(agents).where(agents.c.deleted_at.is_(None)).order_by(agents.c.agent_id)
        async with self._database.read() as connection:
            return [_agent(row) for row in (await connection.execute(query)).mappings()]

    async def agent_with_key(self, fingerprint: str) -> Agent | None:
        """Returns the living agent that owns a key."""
        query = select(agents).where(agents.c.fingerprint == fingerprint, agents.c.deleted_at.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        return _agent(row) if row else None

    async def remove_agent(self, agent_id: str, event: Event) -> Agent | None:
        """Marks a living agent as removed and returns it, or None when there is none."""
        async with self._database.begin() as connection:
            changed = await connection.execute(
                agents.update()
                .where(agents.c.agent_id == agent_id, agents.c.deleted_at.is_(None))
                .values(deleted_at=utc_now())
            )
            if not changed.rowcount:
                return None
            await _append_audit(connection, event)
            row = (await connection.execute(select(agents).where(agents.c.agent_id == agent_id))).mappings().one()
        return _agent(row)

    async def record(self, event: Event) -> None:
        """Records an event that changed nothing, such as a refused mutation."""
        async with self._database.begin() as connection:
            await _append_audit(connection, event)

    async def audit(self) -> Sequence[Entry]:
        """Returns the whole audit log, oldest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(audit_log).order_by(audit_log.c.sequence))).mappings()
            return [_entry(row) for row in rows]

    async def check(self) -> None:
        """Raises OSError when the catalogue does not answer."""
        await self._database.check()


async def _append_audit(connection: AsyncConnection, event: Event) -> None:
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _AUDIT_LOCK})
    last = select(audit_log.c.sequence, audit_log.c.entry_hash).order_by(audit_log.c.sequence.desc()).limit(1)
    row = (await connection.execute(last)).first()
    sequence, previous = (row.sequence + 1, row.entry_hash) if row else (1, GENESIS)
    entry = chained(sequence, utc_now(), event, previous)
    values: dict[str, Any] = {
        "sequence": entry.sequence,
        "at": entry.at,
        "actor": event.actor,
        "action": event.action,
        "target": event.target,
        "result": event.result,
        "detail": event.detail,
        "previous_hash": entry.previous_hash,
        "entry_hash": entry.entry_hash,
    }
    await connection.execute(audit_log.insert().values(values))


def _token(row: RowMapping) -> Token:
    return Token(row["id"], row["subject"], row["role"], row["created_at"], row["expires_at"], row["revoked_at"])


def _agent(row: RowMapping) -> Agent:
    return Agent(row["agent_id"], row["public_key"], row["fingerprint"], row["created_at"], row["deleted_at"])


def _entry(row: RowMapping) -> Entry:
    event = Event(row["actor"], row["action"], row["target"], row["result"], row["detail"])
    return Entry(row["sequence"], row["at"], event, row["previous_hash"], row["entry_hash"])
