"""The line of waiting jobs: one transaction decides who may run now, over all replicas.

A job waits as `pending` without `admitted_at`. Whoever looks takes the one lock, counts what runs, and lets in those
who fit, by priority, then by age. A job that somebody asked to cancel is let in at once: it only ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Row, Table, and_, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.model import BACKUP, PENDING, SWEEP
from sendense_backup.store.policy_tables import policies
from sendense_backup.store.rows import to_words
from sendense_backup.store.tables import has_status, installation, is_active, jobs, operations
from sendense_db.engine import Database

_LOOKED_AT = 1000
"""How many waiting jobs are looked at in one transaction."""

_UNLIMITED = frozenset({SWEEP})
"""Kinds that take no place: they give places back."""

_OF_BOTH = ("id", "repository_id", "policy_id", "priority", "created_at", "cancel_requested")
_OF_BACKUP = tuple(jobs.c[name] for name in (*_OF_BOTH, "agent_id", "datastores_json"))
_OF_OPERATION = tuple(operations.c[name] for name in (*_OF_BOTH, "kind"))
"""All that counts in line: a look at a thousand jobs does not read the rest of their rows."""

OpensAt = Callable[[str, datetime], datetime]
"""From a policy's rules and a moment: the moment itself when the policy's window is open, else when it opens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Jobs at once; 0 means no limit of its own."""

    total: int
    per_agent: int = 0
    per_repository: int = 0
    per_datastore: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in line, or one that runs, as far as limits are concerned."""

    kind: str
    job_id: str
    places: tuple[str, ...]
    priority: int
    created_at: datetime
    policy_id: str
    cancelled: bool


class Line:
    """Lets waiting jobs in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def let_in(self, limits: Limits, moment: datetime, opens_at: OpensAt) -> list[Waiting]:
        """Admits those who may run now, and returns them; who calls must start them.

        A process that dies before it starts them leaves them `pending` and admitted: the caretaker starts those.
        """
        if not await self._somebody_waits():
            return []
        async with self._database.begin() as connection:
            # One at a time over all replicas: without the lock two would let in the same last place.
            await connection.execute(select(installation.c.id).with_for_update())
            waiting = await _waiting(connection, moment)
            closed = await _closed(connection, waiting, moment, opens_at)
            taken = Counter(place for each in await _running(connection) for place in each.places)
            admitted = []
            for each in waiting:
                if each.job_id in closed or not (each.cancelled or _fits(each, taken, limits)):
                    continue
                admitted.append(each)
                taken.update(each.places)
            for table, kinds in ((jobs, True), (operations, False)):
                ids = [each.job_id for each in admitted if (each.kind == BACKUP) == kinds]
                if ids:
                    await connection.execute(update(table).where(table.c.id.in_(ids)).values(admitted_at=moment))
        return admitted

    async def _somebody_waits(self) -> bool:
        """Tells whether there is a line at all; most looks find none, and need neither the lock nor the jobs."""
        async with self._database.read() as connection:
            anybody = select(or_(*(exists().where(_in_line(table)) for table in (jobs, operations))))
            return bool(await connection.scalar(anybody))


def _fits(each: Waiting, taken: Counter[str], limits: Limits) -> bool:
    if each.kind in _UNLIMITED:
        return True
    allowed = {
        "total": limits.total,
        "agent": limits.per_agent,
        "repository": limits.per_repository,
        "datastore": limits.per_datastore,
    }
    for place in each.places:
        limit = allowed[place.partition(":")[0]]
        if limit and taken[place] >= limit:
            return False
    return True


def _in_line(table: Table) -> ColumnElement[bool]:
    return and_(has_status(table, PENDING), table.c.admitted_at.is_(None))


async def _waiting(connection: AsyncConnection, moment: datetime) -> list[Waiting]:
    found: list[Waiting] = []
    for table, columns, read in ((jobs, _OF_BACKUP, _backup), (operations, _OF_OPERATION, _operation)):
        query = (
            select(*columns)
            .where(
                _in_line(table),
                table.c.not_before.is_(None) | (table.c.not_before <= moment) | table.c.cancel_requested,
            )
            .order_by(table.c.priority.desc(), table.c.created_at, table.c.id)
            .limit(_LOOKED_AT)
        )
        found.extend(read(row) for row in (await connection.execute(query)).all())
    return sorted(found, key=lambda each: (-each.priority, each.created_at, each.job_id))


async def _running(connection: AsyncConnection) -> list[Waiting]:
    found: list[Waiting] = []
    for table, columns, read in ((jobs, _OF_BACKUP, _backup), (operations, _OF_OPERATION, _operation)):
        query = select(*columns).where(is_active(table), table.c.admitted_at.is_not(None))
        found.extend(read(row) for row in (await connection.execute(query)).all())
    return found


async def _closed(connection: AsyncConnection, waiting: list[Waiting], moment: datetime, opens_at: OpensAt) -> set[str]:
    """Returns the jobs whose policy's window is closed now, and puts them off until it opens."""
    ids = {each.policy_id for each in waiting if each.kind == BACKUP and each.policy_id}
    if not ids:
        return set()
    rows = await connection.execute(select(policies.c.id, policies.c.rules_json).where(policies.c.id.in_(ids)))
    later = {row.id: opening for row in rows if (opening := opens_at(row.rules_json, moment)) > moment}
    closed = {each.job_id for each in waiting if each.policy_id in later and each.kind == BACKUP and not each.cancelled}
    for policy_id, opening in later.items():
        mine = [each.job_id for each in waiting if each.policy_id == policy_id and each.job_id in closed]
        await connection.execute(update(jobs).where(jobs.c.id.in_(mine)).values(not_before=opening))
    return closed


def _backup(row: Row[tuple[object, ...]]) -> Waiting:
    datastores = [f"datastore:{each}" for each in to_words(row.datastores_json)]
    places = ("total", f"agent:{row.agent_id}", f"repository:{row.repository_id}", *datastores)
    return Waiting(
        BACKUP, row.id, places, row.priority, row.created_at, row.policy_id or "", cancelled=row.cancel_requested
    )


def _operation(row: Row[tuple[object, ...]]) -> Waiting:
    places: tuple[str, ...] = ()
    if row.kind not in _UNLIMITED:
        places = ("total", *([f"repository:{row.repository_id}"] if row.repository_id else []))
    return Waiting(
        row.kind, row.id, places, row.priority, row.created_at, row.policy_id or "", cancelled=row.cancel_requested
    )
