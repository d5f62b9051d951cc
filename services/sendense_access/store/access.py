"""Tokens and agents. Every mutation takes the audit event that records it and writes both in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, RowMapping, and_, or_, select

from sendense_access.audit import Event
from sendense_access.store.audit import append
from sendense_access.store.tables import agents, api_tokens, requests
from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_db.requests import RequestLedger
from sendense_rpc.limits import Limits


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token without its secret; `revoked_at` is None while it is good."""

    token_id: str
    subject: str
    role: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Agent:
    """An enrolled agent; `public_key` is `ssh-ed25519 <base64>`, `fingerprint` its SHA-256 in hex."""

    agent_id: str
    public_key: str
    fingerprint: str
    created_at: datetime
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Which tokens a list shows; empty values do not filter. `state` is `good`, `revoked` or `expired` as of `now`."""

    subject: str = ""
    role: str = ""
    state: str = ""
    now: datetime = field(default_factory=utc_now)


class AccessStore:
    """Reads and writes the access service's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def ledger(self) -> RequestLedger:
        """Where answers to repeated requests are kept."""
        return RequestLedger(self._database, requests)

    async def add_token(self, token: Token, event: Event) -> Token:
        """Records an issued token; returns the recorded one when its id is there already."""
        async with self._database.begin() as connection:
            row = (await connection.execute(select(api_tokens).where(api_tokens.c.id == token.token_id))).mappings()
            known = row.first()
            if known:
                return _token(known)
            await connection.execute(
                api_tokens.insert().values(
                    id=token.token_id,
                    subject=token.subject,
                    role=token.role,
                    created_at=token.created_at,
                    expires_at=token.expires_at,
                    limits_json=token.limits.to_header() if token.limits else "",
                )
            )
            await append(connection, event)
        return token

    async def token(self, token_id: str) -> Token | None:
        """Returns a token, or None when it was never issued here."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(api_tokens).where(api_tokens.c.id == token_id))).mappings().first()
        return _token(row) if row else None

    async def tokens(
        self, limit: int, after: tuple[datetime, str] | None, chosen: TokenFilter | None = None
    ) -> list[Token]:
        """Returns at most `limit` tokens, newest first, that come after the one with this time and id."""
        query = select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.id.desc()).limit(limit)
        query = query.where(*_conditions(chosen)) if chosen else query
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
                await append(connection, event)
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
            await append(connection, event)
        return agent

    async def agents(self, limit: int | None = None, after: str = "") -> list[Agent]:
        """Returns at most `limit` living agents (None for all), by name, that come after this one."""
        living = agents.c.deleted_at.is_(None)
        query = select(agents).where(living, agents.c.agent_id > after).order_by(agents.c.agent_id).limit(limit)
        async with self._database.read() as connection:
            return [_agent(row) for row in (await connection.execute(query)).mappings()]

    async def agent(self, agent_id: str) -> Agent | None:
        """Returns the living agent of a name."""
        query = select(agents).where(agents.c.agent_id == agent_id, agents.c.deleted_at.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        return _agent(row) if row else None

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
            await append(connection, event)
            row = (await connection.execute(select(agents).where(agents.c.agent_id == agent_id))).mappings().one()
        return _agent(row)

    async def record(self, event: Event) -> None:
        """Records an event that changed nothing, such as a refused mutation."""
        async with self._database.begin() as connection:
            await append(connection, event)

    async def check(self) -> None:
        """Raises OSError when the catalogue does not answer."""
        await self._database.check()


def _conditions(chosen: TokenFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if chosen.subject:
        conditions.append(api_tokens.c.subject == chosen.subject)
    if chosen.role:
        conditions.append(api_tokens.c.role == chosen.role)
    if chosen.state == "revoked":
        conditions.append(api_tokens.c.revoked_at.is_not(None))
    elif chosen.state:
        good = api_tokens.c.expires_at > chosen.now
        conditions += [api_tokens.c.revoked_at.is_(None), good if chosen.state == "good" else ~good]
    return conditions


def _token(row: RowMapping) -> Token:
    return Token(
        token_id=row["id"],
        subject=row["subject"],
        role=row["role"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        limits=Limits.from_header(row["limits_json"]) if row["limits_json"] else Limits(),
    )


def _agent(row: RowMapping) -> Agent:
    return Agent(row["agent_id"], row["public_key"], row["fingerprint"], row["created_at"], row["deleted_at"])
