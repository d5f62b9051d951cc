"""Answers to repeated requests, in a small table of each service: `sendense_rpc.repeats` says what they are for."""

from __future__ import annotations

from sqlalchemy import Column, LargeBinary, MetaData, String, Table, insert, select
from sqlalchemy.exc import IntegrityError

from sendense_db.columns import UtcDateTime, utc_now
from sendense_db.engine import Database
from sendense_rpc.repeats import KEPT_FOR, Kept


def requests_table(metadata: MetaData, service: str) -> Table:
    """Returns the table `{service}_requests`, for the service's own metadata."""
    return Table(
        f"{service}_requests",
        metadata,
        Column("key", String(64), primary_key=True),
        Column("digest", String(64), nullable=False),
        Column("answer", LargeBinary, nullable=False),
        Column("created_at", UtcDateTime, nullable=False, index=True),
    )


class RequestLedger:
    """Keeps answers in a service's table.

    Args:
        database: The catalogue.
        table: From `requests_table`.
    """

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        self._table = table

    async def find(self, key: str) -> Kept | None:
        """Returns what is kept under a key, unless it is older than a day."""
        query = select(self._table.c.digest, self._table.c.answer).where(
            self._table.c.key == key, self._table.c.created_at > utc_now() - KEPT_FOR
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return Kept(row.digest, row.answer) if row else None

    async def keep(self, key: str, kept: Kept) -> None:
        """Keeps an answer and forgets those that are older than a day."""
        now = utc_now()
        try:
            async with self._database.begin() as connection:
                await connection.execute(self._table.delete().where(self._table.c.created_at <= now - KEPT_FOR))
                await connection.execute(
                    insert(self._table).values(key=key, digest=kept.digest, answer=kept.answer, created_at=now)
                )
        except IntegrityError:
            # Another replica answered the same request in the meantime: its answer stays.
            return
