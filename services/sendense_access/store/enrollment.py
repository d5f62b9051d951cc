"""Rows of `agent_enrollments`: one-time codes, as digests."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, insert, update

from sendense_access.audit import Event
from sendense_access.store.audit import append
from sendense_access.store.tables import agent_enrollments as table
from sendense_db.columns import utc_now
from sendense_db.engine import Database


class EnrollmentStore:
    """At most one code for each agent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, agent_id: str, digest: str, expires_at: datetime, event: Event) -> None:
        """Keeps an agent's code in place of an earlier one, and records that."""
        async with self._database.begin() as connection:
            await connection.execute(delete(table).where(table.c.agent_id == agent_id))
            await connection.execute(
                insert(table).values(agent_id=agent_id, code_digest=digest, created_at=utc_now(), expires_at=expires_at)
            )
            await append(connection, event)

    async def spend(self, agent_id: str, digest: str, now: datetime) -> bool:
        """Marks a good code as used; returns whether it was good. Of two who ask at once one gets it."""
        query = (
            update(table)
            .where(
                table.c.agent_id == agent_id,
                table.c.code_digest == digest,
                table.c.redeemed_at.is_(None),
                table.c.expires_at > now,
            )
            .values(redeemed_at=now)
        )
        async with self._database.begin() as connection:
            return bool((await connection.execute(query)).rowcount)
