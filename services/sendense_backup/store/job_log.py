"""The job log: a line for each step and event of a job."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import Column, insert, select

from sendense_backup.errors import BadPageToken
from sendense_backup.store.tables import log as log_table
from sendense_db.engine import Database

logger = structlog.get_logger()

INFO = "info"
WARNING = "warning"
ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of a job's log; `data_json` says the same for programs."""

    entry_id: int
    created_at: datetime
    level: str
    step: str
    message: str
    data_json: str


class JobLog:
    """Writes and reads job logs; each line also goes to the process's log.

    Args:
        database: The catalogue.
        owner: The column that names whose line it is: a backup or an operation.
    """

    def __init__(self, database: Database, owner: Column[str | None] = log_table.c.backup_id) -> None:
        self._database = database
        self._owner = owner

    async def write(self, job_id: str, level: str, step: str, message: str, **data: object) -> None:
        """Adds a line.

        Args:
            job_id: The job.
            level: `info`, `warning` or `error`.
            step: The workflow's step.
            message: What happened, for people.
            data: The same for programs; values that JSON knows.
        """
        getattr(logger, level)(message, job=job_id, step=step, **data)
        async with self._database.begin() as connection:
            await connection.execute(
                insert(log_table).values(
                    {
                        self._owner.name: job_id,
                        "level": level,
                        "step": step,
                        "message": message,
                        "data_json": json.dumps(data, sort_keys=True),
                    }
                )
            )

    async def page(self, job_id: str, size: int, token: str) -> tuple[list[LogEntry], str]:
        """Returns a page of a job's log, oldest first, and the token of the next page."""
        if token and not token.isdecimal():
            raise BadPageToken
        query = (
            select(log_table)
            .where(self._owner == job_id, log_table.c.entry_id > int(token or 0))
            .order_by(log_table.c.entry_id)
            .limit(size + 1)
        )
        async with self._database.read() as connection:
            found = [
                LogEntry(row.entry_id, row.created_at, row.level, row.step, row.message, row.data_json)
                for row in await connection.execute(query)
            ]
        following = str(found[size - 1].entry_id) if len(found) > size else ""
        return found[:size], following
