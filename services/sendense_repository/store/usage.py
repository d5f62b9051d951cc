"""Rows of `usage_samples`: how much each repository's layers took, day by day; and what they take now."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select

from sendense_db.engine import Database
from sendense_repository.forecast import Sample
from sendense_repository.store.tables import backup_layers, restore_points
from sendense_repository.store.upkeep_tables import usage_samples as table

KEPT = timedelta(days=400)


class Usage:
    """What repositories hold."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def points(self, repository_id: str) -> int:
        """Returns how many committed points a repository has."""
        query = (
            select(func.count())
            .select_from(restore_points)
            .where(restore_points.c.repository_id == repository_id, restore_points.c.state == "committed")
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one()

    async def stored_bytes(self, repository_id: str) -> int:
        """Returns the bytes that a repository's sealed layers take, as last recorded."""
        layers = backup_layers
        query = select(func.coalesce(func.sum(layers.c.stored_bytes), 0)).where(
            layers.c.repository_id == repository_id, layers.c.deleted_at.is_(None), layers.c.state == "sealed"
        )
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def sample(self, repository_id: str, stored_bytes: int, now: datetime) -> None:
        """Keeps what a repository holds as this day's sample, and drops what is too old to matter."""
        day = f"{now:%Y-%m-%d}"
        async with self._database.begin() as connection:
            await connection.execute(
                delete(table).where(
                    table.c.repository_id == repository_id,
                    (table.c.day == day) | (table.c.sampled_at < now - KEPT),
                )
            )
            await connection.execute(
                insert(table).values(repository_id=repository_id, day=day, stored_bytes=stored_bytes, sampled_at=now)
            )

    async def samples(self, repository_id: str, since: datetime) -> list[Sample]:
        """Returns a repository's samples, oldest first."""
        query = (
            select(table.c.sampled_at, table.c.stored_bytes)
            .where(table.c.repository_id == repository_id, table.c.sampled_at >= since)
            .order_by(table.c.sampled_at)
        )
        async with self._database.read() as connection:
            return [Sample(row.sampled_at, row.stored_bytes) for row in await connection.execute(query)]
