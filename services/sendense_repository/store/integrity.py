"""Rows of `integrity_checks` and `verifications`: what reading back found, and who reads now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, delete, insert, select, update

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.integrity import Check, Damage
from sendense_repository.store.upkeep_tables import integrity_checks, verifications

VerificationState = Literal["running", "done", "cancelled", "failed"]

_IDS_PER_QUERY = 500


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """A verification; see the protos' `Verification`."""

    verification_id: str
    backup_id: str
    state: VerificationState
    bytes_per_second: int
    max_age_seconds: int
    total_bytes: int
    done_bytes: int
    error_reason: str
    error_message: str
    started_at: datetime
    ended_at: datetime | None


class IntegrityChecks:
    """What is known of layers and points files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, check: Check) -> None:
        """Keeps the outcome of a check in place of an earlier one."""
        table = integrity_checks
        values = {
            "repository_id": check.repository_id,
            "digest": check.digest,
            "checked_at": check.checked_at,
            "damages_json": json.dumps([damage.as_json() for damage in check.damages]),
        }
        async with self._database.begin() as connection:
            await connection.execute(delete(table).where(table.c.subject_id == check.subject_id))
            await connection.execute(insert(table).values(subject_id=check.subject_id, **values))

    async def of(self, subject_ids: Sequence[str]) -> list[Check]:
        """Returns what is known of some layers and points files."""
        found: list[Check] = []
        table = integrity_checks
        async with self._database.read() as connection:
            for start in range(0, len(subject_ids), _IDS_PER_QUERY):
                some = subject_ids[start : start + _IDS_PER_QUERY]
                rows = await connection.execute(select(table).where(table.c.subject_id.in_(some)))
                found += [_check(row) for row in rows]
        return found

    async def of_repository(self, repository_id: str) -> list[Check]:
        """Returns what is known of a repository's layers and points files."""
        table = integrity_checks
        async with self._database.read() as connection:
            rows = await connection.execute(select(table).where(table.c.repository_id == repository_id))
            return [_check(row) for row in rows]


class Verifications:
    """Verifications that run or ended."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, verification_id: str) -> VerificationRecord | None:
        """Returns a verification."""
        query = select(verifications).where(verifications.c.verification_id == verification_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            return VerificationRecord(**row._mapping) if row is not None else None  # noqa: SLF001  # SQLAlchemy's name

    async def put(self, record: VerificationRecord) -> None:
        """Keeps a verification in place of an earlier row of its id."""
        async with self._database.begin() as connection:
            await connection.execute(
                delete(verifications).where(verifications.c.verification_id == record.verification_id)
            )
            await connection.execute(insert(verifications).values(**asdict(record)))

    async def end_running(self, reason: str, message: str) -> None:
        """Says of every verification that runs, by the rows, that it failed: its process is gone."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(verifications)
                .where(verifications.c.state == "running")
                .values(state="failed", error_reason=reason, error_message=message, ended_at=utc_now())
            )


def _check(row: Row[Any]) -> Check:
    damages = [Damage(**each) for each in json.loads(row.damages_json)]
    return Check(row.subject_id, row.repository_id, row.digest, row.checked_at, damages)
