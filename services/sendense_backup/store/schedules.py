"""Durable schedules of the service's own work, such as sweeps: each due time is taken by one replica."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from sendense_backup.store.policy_tables import schedules
from sendense_db.engine import Database


class Schedules:
    """When something is due next, by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, name: str, moment: datetime, every: timedelta) -> datetime | None:
        """Returns the time that is due now; None when nothing is. The first time is one period from the first look."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(schedules).where(schedules.c.name == name))).first()
        if row is None:
            try:
                async with self._database.begin() as connection:
                    await connection.execute(
                        insert(schedules).values(name=name, next_run_at=moment + every, looked_at=moment)
                    )
            except IntegrityError:
                pass  # another replica was faster
            return None
        due_at: datetime = row.next_run_at
        # A clock that was set back must not put it off for long.
        return due_at if due_at <= moment or due_at > moment + 2 * every else None

    async def done(self, name: str, due_at: datetime, moment: datetime, every: timedelta) -> None:
        """Says that what was due at a time was done; whoever comes second changes nothing."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(schedules)
                .where(schedules.c.name == name, schedules.c.next_run_at == due_at)
                .values(next_run_at=moment + every, looked_at=moment)
            )
