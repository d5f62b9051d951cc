"""The latest attempt seen of each job; an older one may change nothing."""

from __future__ import annotations

from sqlalchemy import insert, select, update

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.errors import StaleAttempt
from sendense_repository.records import Holder
from sendense_repository.store.tables import repository_fences as table


class Fences:
    """Rows of `repository_fences`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def admit(self, holder: Holder) -> None:
        """Remembers the holder's attempt.

        Raises:
            StaleAttempt: A newer attempt of the job was seen.
        """
        query = select(table.c.attempt).where(table.c.job_id == holder.job_id)
        # Nearly every call is by the attempt that was seen last: it needs no write lock.
        async with self._database.read() as connection:
            if (await connection.execute(query)).scalar_one_or_none() == holder.attempt:
                return
        async with self._database.begin() as connection:
            latest = (await connection.execute(query.with_for_update())).scalar_one_or_none()
            values = {"attempt": holder.attempt, "updated_at": utc_now()}
            if latest is None:
                await connection.execute(insert(table).values(job_id=holder.job_id, **values))
            elif holder.attempt < latest:
                raise StaleAttempt(holder.job_id, holder.attempt, latest)
            elif holder.attempt > latest:
                await connection.execute(update(table).where(table.c.job_id == holder.job_id).values(**values))
