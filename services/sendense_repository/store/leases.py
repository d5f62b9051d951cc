"""Rows of `point_leases`: who keeps which restore point as it is, and until when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, select

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.records import LeaseRecord
from sendense_repository.store.tables import point_leases as table


class Leases:
    """Leases of restore points."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, backup_id: str, holder: str, expires_at: datetime) -> LeaseRecord:
        """Makes or renews a lease."""
        record = LeaseRecord(backup_id, holder, expires_at)
        async with self._database.begin() as connection:
            await connection.execute(delete(table).where(table.c.backup_id == backup_id, table.c.holder == holder))
            await connection.execute(
                insert(table).values(backup_id=backup_id, holder=holder, expires_at=expires_at, created_at=utc_now())
            )
        return record

    async def remove(self, backup_id: str, holder: str) -> None:
        """Ends a lease, if there is one."""
        async with self._database.begin() as connection:
            await connection.execute(delete(table).where(table.c.backup_id == backup_id, table.c.holder == holder))

    async def living(self, backup_ids: Sequence[str], now: datetime) -> list[LeaseRecord]:
        """Returns the leases of points that have not run out."""
        query = (
            select(table)
            .where(table.c.backup_id.in_(backup_ids), table.c.expires_at > now)
            .order_by(table.c.backup_id, table.c.holder)
        )
        async with self._database.read() as connection:
            return [_record(row) for row in await connection.execute(query)]


def _record(row: Row[Any]) -> LeaseRecord:
    return LeaseRecord(row.backup_id, row.holder, row.expires_at)
