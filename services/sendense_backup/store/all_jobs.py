"""Backups and operations together: one list, one way to find a job by its id or a prefix of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.errors import AmbiguousBackupId, JobNotFound
from sendense_backup.model import BACKUP, Job, Operation
from sendense_backup.store.paging import begins_with, older_than, token_of
from sendense_backup.store.rows import SELECT_JOBS, to_job, to_operation
from sendense_backup.store.tables import is_active, jobs, operations
from sendense_db.engine import Database

_CANDIDATES = 10
"""How many ids an ambiguous prefix lists."""

AnyJob = Job | Operation


@dataclass(frozen=True, slots=True)
class AnyFilter:
    """Which jobs a list shows; empty values do not filter."""

    kind: str = ""
    status: str = ""
    vm_name: str = ""
    policy_id: str = ""


class AllJobs:
    """Reads jobs of all kinds that are not deleted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve(self, wanted: str) -> str:
        """Returns a job's whole id.

        Args:
            wanted: The id, or a prefix that only one job has.

        Raises:
            JobNotFound: No job has it.
            AmbiguousBackupId: Several do.
        """
        async with self._database.read() as connection:
            for table in (jobs, operations):
                exact = (await connection.execute(select(_living(table)).where(table.c.id == wanted))).first()
                if exact is not None:
                    if not exact[0]:  # deleted: it is no prefix of another one either
                        raise JobNotFound(wanted)
                    return wanted
            found = sorted(await _beginning_with(connection, wanted)) if wanted else []
        if not found:
            raise JobNotFound(wanted)
        if len(found) > 1:
            raise AmbiguousBackupId(wanted, found[:_CANDIDATES])
        return found[0]

    async def page(self, chosen: AnyFilter, size: int, token: str) -> tuple[list[AnyJob], str]:
        """Returns a page of jobs, newest first, without the disks of backups, and the token of the next page."""
        found: list[tuple[object, str, AnyJob]] = []
        async with self._database.read() as connection:
            if chosen.kind in ("", BACKUP):
                query = SELECT_JOBS.where(*_conditions(jobs, chosen, token))
                query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(size + 1)
                found += [(row.created_at, row.id, to_job(row)) for row in await connection.execute(query)]
            if chosen.kind != BACKUP:
                conditions = _conditions(operations, chosen, token)
                if chosen.kind:
                    conditions.append(operations.c.kind == chosen.kind)
                listed = select(operations).where(*conditions)
                listed = listed.order_by(operations.c.created_at.desc(), operations.c.id.desc()).limit(size + 1)
                found += [(row.created_at, row.id, to_operation(row)) for row in await connection.execute(listed)]
        found.sort(key=lambda each: (each[0], each[1]), reverse=True)
        page = [each for _, _, each in found[:size]]
        if len(found) <= size:
            return page, ""
        created_at, identifier, _ = found[size - 1]
        return page, token_of(created_at, identifier)  # type: ignore[arg-type]

    async def counts(self) -> dict[tuple[str, str, str], int]:
        """Returns how many jobs there are, by kind, status and reason; those that run are counted by phase."""
        counted: dict[tuple[str, str, str], int] = {}
        async with self._database.read() as connection:
            for table in (jobs, operations):
                kind = table.c.kind if table is operations else None
                columns = [table.c.status, func.coalesce(table.c.error_reason, "").label("reason")]
                grouped = [*columns, *([kind] if kind is not None else [])]
                query = select(*grouped, func.count().label("number")).where(_living(table)).group_by(*grouped)
                for row in await connection.execute(query):
                    counted[getattr(row, "kind", BACKUP), row.status, row.reason] = row.number
        return counted

    async def active_ids(self) -> list[str]:
        """Returns the ids of jobs that have not ended."""
        async with self._database.read() as connection:
            return [
                str(each)
                for table in (jobs, operations)
                for each in await connection.scalars(select(table.c.id).where(is_active(table)))
            ]


def _living(table: Table) -> ColumnElement[bool]:
    return table.c.deleted_at.is_(None) if table is jobs else table.c.id.is_not(None)


def _conditions(table: Table, chosen: AnyFilter, token: str) -> list[ColumnElement[bool]]:
    conditions = [_living(table)]
    if chosen.status:
        conditions.append(table.c.status == chosen.status)
    if chosen.vm_name:
        conditions.append(table.c.vm_name == chosen.vm_name)
    if chosen.policy_id:
        conditions.append(table.c.policy_id == chosen.policy_id)
    if token:
        conditions.append(older_than(table, token))
    return conditions


async def _beginning_with(connection: AsyncConnection, prefix: str) -> list[str]:
    found: list[str] = []
    for table in (jobs, operations):
        mine = begins_with(table.c.id, prefix, connection.dialect.name)
        query = select(table.c.id).where(mine, _living(table)).limit(_CANDIDATES + 1)
        found += [str(each) for each in await connection.scalars(query)]
    return found
