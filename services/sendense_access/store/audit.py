"""The audit log's rows: appended here only, in one order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, RowMapping, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_access.audit import GENESIS, Entry, Event, chained
from sendense_access.store.tables import audit_log
from sendense_db.columns import utc_now
from sendense_db.engine import Database

_AUDIT_LOCK = 0x5E4D_0A0D
"""PostgreSQL advisory lock that orders the writers of the audit log."""
_BLOCK = 1000


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries a list shows; empty values do not filter. `target` is a part of an entry's target."""

    actor: str = ""
    action: str = ""
    result: str = ""
    target: str = ""
    request_id: str = ""
    created_after: datetime | None = None
    created_before: datetime | None = None


class AuditStore:
    """Reads the audit log, and appends what other services report."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, events: Sequence[Event]) -> None:
        """Appends events that are not there yet, in their order, all or none."""
        async with self._database.begin() as connection:
            for event in events:
                known = select(audit_log.c.sequence).where(audit_log.c.event_id == event.event_id)
                if event.event_id and await connection.scalar(known) is not None:
                    continue
                await append(connection, event)

    async def head(self) -> tuple[int, str]:
        """Returns the newest entry's position and hash; 0 and `GENESIS` for an empty log."""
        last = select(audit_log.c.sequence, audit_log.c.entry_hash).order_by(audit_log.c.sequence.desc()).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(last)).first()
        return (row.sequence, row.entry_hash) if row else (0, GENESIS)

    async def hash_at(self, sequence: int) -> str | None:
        """Returns the hash of the entry at a position; None when there is none."""
        query = select(audit_log.c.entry_hash).where(audit_log.c.sequence == sequence)
        async with self._database.read() as connection:
            found = await connection.scalar(query)
        return None if found is None else str(found)

    async def entries(self, limit: int, before: int | None, chosen: AuditFilter) -> list[Entry]:
        """Returns at most `limit` entries, newest first, that come before this position."""
        query = select(audit_log).where(*_conditions(chosen)).order_by(audit_log.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_log.c.sequence < before)
        async with self._database.read() as connection:
            return [_entry(row) for row in (await connection.execute(query)).mappings()]

    async def all(self) -> AsyncIterator[Entry]:
        """Yields the whole log, oldest first, block by block: it may be longer than memory."""
        last = 0
        while True:
            query = select(audit_log).where(audit_log.c.sequence > last).order_by(audit_log.c.sequence).limit(_BLOCK)
            async with self._database.read() as connection:
                block = [_entry(row) for row in (await connection.execute(query)).mappings()]
            if not block:
                return
            for entry in block:
                yield entry
            last = block[-1].sequence


async def append(connection: AsyncConnection, event: Event) -> None:
    """Appends an event inside a transaction."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _AUDIT_LOCK})
    last = select(audit_log.c.sequence, audit_log.c.entry_hash).order_by(audit_log.c.sequence.desc()).limit(1)
    row = (await connection.execute(last)).first()
    sequence, previous = (row.sequence + 1, row.entry_hash) if row else (1, GENESIS)
    entry = chained(sequence, utc_now(), event, previous)
    await connection.execute(
        audit_log.insert().values(
            sequence=entry.sequence,
            at=entry.at,
            actor=event.actor,
            action=event.action,
            target=event.target,
            result=event.result,
            detail=event.detail,
            previous_hash=entry.previous_hash,
            entry_hash=entry.entry_hash,
            source=event.source,
            request_id=event.request_id,
            token_id=event.token_id,
            event_id=event.event_id,
        )
    )


def _conditions(chosen: AuditFilter) -> list[ColumnElement[bool]]:
    equal = ((audit_log.c[name], getattr(chosen, name)) for name in ("actor", "action", "result", "request_id"))
    conditions: list[ColumnElement[bool]] = [column == value for column, value in equal if value]
    if chosen.target:
        conditions.append(audit_log.c.target.contains(chosen.target, autoescape=True))
    if chosen.created_after:
        conditions.append(audit_log.c.at >= chosen.created_after)
    if chosen.created_before:
        conditions.append(audit_log.c.at < chosen.created_before)
    return conditions


def _entry(row: RowMapping) -> Entry:
    event = Event(
        actor=row["actor"],
        action=row["action"],
        target=row["target"],
        result=row["result"],
        detail=row["detail"],
        source=row["source"],
        request_id=row["request_id"],
        token_id=row["token_id"],
        event_id=row["event_id"],
    )
    return Entry(row["sequence"], row["at"], event, row["previous_hash"], row["entry_hash"])
