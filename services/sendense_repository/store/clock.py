"""The one row of `trusted_clock`."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from sendense_db.engine import Database
from sendense_repository.store.upkeep_tables import trusted_clock as table
from sendense_repository.trusted_clock import Reached, Reading, TrustedTime, advance, trusted


class Clock:
    """Keeps the moment that has surely come."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tick(self, reading: Reading) -> TrustedTime:
        """Takes a reading of the machine and returns the time to count ages with."""
        async with self._database.begin() as connection:
            row = (await connection.execute(select(table).with_for_update())).one_or_none()
            saved = Reached(row.reached, row.boot_id, row.boot_seconds) if row is not None else None
            reached = advance(saved, reading)
            await connection.execute(delete(table))
            await connection.execute(
                insert(table).values(
                    id=1, reached=reached.moment, boot_id=reached.boot_id, boot_seconds=reached.boot_seconds
                )
            )
        return trusted(reached, reading)
