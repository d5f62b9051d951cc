"""Sums and ages for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from sendense_backup.model import ACTIVE, BACKUP, COMPLETED, PENDING, RUNNING, VERIFY
from sendense_backup.store.tables import contexts, has_status, jobs, operations
from sendense_db.engine import Database


@dataclass(frozen=True, slots=True)
class Totals:
    """Over all jobs: how many wait in line, bytes a second now, bytes in all."""

    waiting: int
    rate: int
    moved: int


class Measures:
    """Reads what is measured."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def totals(self) -> Totals:
        """Returns the sums."""
        async with self._database.read() as connection:
            waiting = 0
            for table in (jobs, operations):
                in_line = select(func.count()).where(has_status(table, PENDING), table.c.admitted_at.is_(None))
                waiting += int(await connection.scalar(in_line) or 0)
            running = select(func.coalesce(func.sum(jobs.c.rate_bytes_per_second), 0)).where(has_status(jobs, RUNNING))
            rate = await connection.scalar(running)
            moved = await connection.scalar(select(func.coalesce(func.sum(jobs.c.bytes_transferred), 0)))
        return Totals(waiting, int(rate or 0), int(moved or 0))

    async def last_good(self) -> list[tuple[str, str, datetime]]:
        """Returns for each VM that was backed up its name, its uuid, and when its newest restore point was made."""
        # One look into the index for each VM, instead of one at each of its restore points.
        at = (
            select(func.max(jobs.c.created_at))
            .where(
                jobs.c.vm_context_id == contexts.c.context_id,
                jobs.c.status == COMPLETED,
                jobs.c.deleted_at.is_(None),
            )
            .scalar_subquery()
        )
        query = select(contexts.c.vm_name, contexts.c.vm_uuid, at.label("at"))
        async with self._database.read() as connection:
            found = (await connection.execute(query)).all()
        return [(row.vm_name, row.vm_uuid, row.at) for row in found if row.at is not None]

    async def last_verified(self) -> list[tuple[str, str, datetime]]:
        """Returns the same for when restore points were last found sound."""
        newest = (
            select(operations.c.vm_context_id, func.max(operations.c.completed_at).label("at"))
            .where(operations.c.kind == VERIFY, operations.c.status == COMPLETED)
            .group_by(operations.c.vm_context_id)
            .subquery()
        )
        query = select(contexts.c.vm_name, contexts.c.vm_uuid, newest.c.at).join(
            newest, newest.c.vm_context_id == contexts.c.context_id
        )
        async with self._database.read() as connection:
            return [(row.vm_name, row.vm_uuid, row.at) for row in await connection.execute(query)]

    async def ended_between(self, after: datetime, until: datetime) -> list[tuple[str, str, float]]:
        """Returns the jobs that ended in a period: kind, status, seconds from being asked for to the end."""
        found: list[tuple[str, str, float]] = []
        async with self._database.read() as connection:
            for table in (jobs, operations):
                query = select(table).where(
                    table.c.completed_at > after, table.c.completed_at <= until, table.c.status.not_in(ACTIVE)
                )
                for row in await connection.execute(query):
                    kind = BACKUP if table is jobs else row.kind
                    found.append((kind, row.status, (row.completed_at - row.created_at).total_seconds()))
        return found
