"""Rows of `retention_runs`: plans that are being done, or were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import delete, insert, select, update

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.store.upkeep_tables import retention_runs as table

RunState = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class RetentionRun:
    """A plan that is being done.

    Attributes:
        run_id: The job id that it was started under.
        repository_id: Where.
        digest: Of the plan.
        state: Where it is.
        to_remove: For each VM the points that the plan removes.
        removed: The points that are gone.
        freed_bytes: What came back.
        error_reason: Why it failed, empty otherwise.
        error_message: The same in words.
        started_at: When it was accepted.
    """

    run_id: str
    repository_id: str
    digest: str
    state: RunState
    to_remove: Mapping[str, Sequence[str]]
    removed: Sequence[str]
    freed_bytes: int
    error_reason: str
    error_message: str
    started_at: datetime

    @property
    def remaining(self) -> list[str]:
        """The points that are still to be removed."""
        gone = set(self.removed)
        return [backup_id for ids in self.to_remove.values() for backup_id in ids if backup_id not in gone]


class RetentionRuns:
    """Accepted plans."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, run_id: str) -> RetentionRun | None:
        """Returns a run."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(table).where(table.c.run_id == run_id))).one_or_none()
        if row is None:
            return None
        values: dict[str, Any] = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented name
        values["to_remove"] = json.loads(values.pop("to_remove_json"))
        values["removed"] = json.loads(values.pop("removed_json"))
        del values["updated_at"]
        return RetentionRun(**values)

    async def put(self, run: RetentionRun) -> None:
        """Keeps a run in place of an earlier row of its id."""
        values = {
            "repository_id": run.repository_id,
            "digest": run.digest,
            "state": run.state,
            "to_remove_json": json.dumps({vm: list(ids) for vm, ids in run.to_remove.items()}),
            "removed_json": json.dumps(list(run.removed)),
            "freed_bytes": run.freed_bytes,
            "error_reason": run.error_reason,
            "error_message": run.error_message,
            "started_at": run.started_at,
            "updated_at": utc_now(),
        }
        async with self._database.begin() as connection:
            await connection.execute(delete(table).where(table.c.run_id == run.run_id))
            await connection.execute(insert(table).values(run_id=run.run_id, **values))

    async def end_running(self, reason: str, message: str) -> None:
        """Says of every run that is under way, by the rows, that it failed: its process is gone."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(table)
                .where(table.c.state == "running")
                .values(state="failed", error_reason=reason, error_message=message, updated_at=utc_now())
            )
