"""Reads and lists jobs, and marks what people ask for: cancel, deletion."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.errors import AmbiguousBackupId, BackupNotFound
from sendense_backup.model import ACTIVE, CONSOLIDATED, FULL, Job, JobDisk, Point, VmRef
from sendense_backup.store.limited import admitted
from sendense_backup.store.paging import begins_with, older_than, token_of
from sendense_backup.store.rows import SELECT_JOBS, to_disk, to_job
from sendense_backup.store.tables import contexts, disks, is_active, jobs
from sendense_db.columns import utc_now
from sendense_db.engine import Database

_CANDIDATES = 10
"""How many ids an ambiguous prefix lists."""


_SLICE = 500
"""Databases bound the values of a statement."""


@dataclass(frozen=True, slots=True)
class Try:
    """A backup that a policy's run started for a VM."""

    backup_id: str
    status: str


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows; empty values do not filter."""

    vm_name: str = ""
    status: str = ""
    backup_type: str = ""
    created_after: datetime | None = None
    created_before: datetime | None = None


class Jobs:
    """Jobs that are not deleted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, backup_id: str) -> Job:
        """Returns a job with its disks.

        Args:
            backup_id: The whole id, or a prefix that only one job has.

        Raises:
            BackupNotFound: No job has it.
            AmbiguousBackupId: Several do.
        """
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    SELECT_JOBS.where(jobs.c.id == backup_id, jobs.c.deleted_at.is_(None), *admitted())
                )
            ).first()
            if row is None:
                row = (
                    await connection.execute(SELECT_JOBS.where(jobs.c.id == await _only(connection, backup_id)))
                ).one()
            return to_job(row, await _disks(connection, row.id))

    async def page(self, chosen: JobFilter, size: int, token: str) -> tuple[list[Job], str]:
        """Returns a page of jobs without their disks, newest first, and the token of the next page."""
        conditions: list[ColumnElement[bool]] = [jobs.c.deleted_at.is_(None), *admitted()]
        if chosen.vm_name:
            conditions.append(jobs.c.vm_name == chosen.vm_name)
        if chosen.status:
            conditions.append(jobs.c.status == chosen.status)
        if chosen.backup_type:
            conditions.append(jobs.c.backup_type == chosen.backup_type)
        if chosen.created_after:
            conditions.append(jobs.c.created_at >= chosen.created_after)
        if chosen.created_before:
            conditions.append(jobs.c.created_at < chosen.created_before)
        if token:
            conditions.append(older_than(jobs, token))
        query = SELECT_JOBS.where(*conditions).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(size + 1)
        async with self._database.read() as connection:
            found = [to_job(row) for row in await connection.execute(query)]
        following = token_of(found[size - 1].created_at, found[size - 1].backup_id) if len(found) > size else ""
        return found[:size], following

    async def active(self) -> list[Job]:
        """Returns the jobs that have not ended, oldest first."""
        query = SELECT_JOBS.where(is_active(jobs)).order_by(jobs.c.created_at)
        async with self._database.read() as connection:
            return [to_job(row) for row in await connection.execute(query)]

    async def tries_of(self, policy_run_ids: Sequence[str]) -> dict[str, dict[VmRef, list[Try]]]:
        """Returns what these runs started: by run and VM the tries, oldest first. Of each only what a look needs."""
        found: dict[str, dict[VmRef, list[Try]]] = {}
        columns = (jobs.c.policy_run_id, jobs.c.id, jobs.c.status, contexts.c.vcenter_uuid, contexts.c.vm_uuid)
        tries = select(*columns).join(contexts, contexts.c.context_id == jobs.c.vm_context_id)
        tries = tries.order_by(jobs.c.created_at, jobs.c.id)
        async with self._database.read() as connection:
            for start in range(0, len(policy_run_ids), _SLICE):
                mine = jobs.c.policy_run_id.in_(policy_run_ids[start : start + _SLICE])
                for run, backup_id, status, vcenter, vm in (await connection.execute(tries.where(mine))).all():
                    its = found.setdefault(run, {}).setdefault(VmRef(vcenter, vm), [])
                    its.append(Try(backup_id, status))
        return found

    async def ended(self, backup_id: str) -> bool:
        """Tells whether this is a job of ours that has ended, deleted or not."""
        async with self._database.read() as connection:
            status = await connection.scalar(select(jobs.c.status).where(jobs.c.id == backup_id))
        return status is not None and status not in ACTIVE

    async def building_on(self, backup_ids: Collection[str]) -> list[str]:
        """Returns the backups that build on one of these and are none of them."""
        query = select(jobs.c.id).where(
            jobs.c.parent_backup_id.in_(backup_ids), jobs.c.id.not_in(backup_ids), jobs.c.deleted_at.is_(None)
        )
        async with self._database.read() as connection:
            return [str(each) for each in await connection.scalars(query.order_by(jobs.c.id))]

    async def note_merged(self, point: Point, gone: Collection[str]) -> None:
        """Records what a restore point's disks are after others went into it, and what it builds on now.

        Args:
            point: The point as the repository describes it now.
            gone: The backups that went into it.
        """
        types = [layer.backup_type for layer in point.layers]
        async with self._database.begin() as connection:
            below = await _nearest_below(connection, point.backup_id, gone)
            for layer in point.layers:
                mine = (disks.c.backup_id == point.backup_id) & (disks.c.layer_id == layer.layer_id)
                values: dict[str, object] = {"path": layer.path, "chain_id": layer.chain_id}
                await connection.execute(update(disks).where(mine).values(**values))
                if layer.backup_type == FULL:
                    merged = mine & (disks.c.backup_type != FULL)
                    values = {"backup_type": FULL, "reason": CONSOLIDATED, "parent_backup_id": ""}
                    await connection.execute(update(disks).where(merged).values(**values))
                else:
                    await connection.execute(update(disks).where(mine).values(parent_backup_id=below or ""))
            values = {"parent_backup_id": below}
            if types and all(each == FULL for each in types):
                values = {"parent_backup_id": None, "backup_type": FULL}
            await connection.execute(update(jobs).where(jobs.c.id == point.backup_id).values(**values))

    async def request_cancel(self, backup_id: str) -> bool:
        """Marks a job that has not ended as to be cancelled; False when it has ended."""
        async with self._database.begin() as connection:
            changed = await connection.execute(
                update(jobs).where(jobs.c.id == backup_id, jobs.c.status.in_(ACTIVE)).values(cancel_requested=True)
            )
        return changed.rowcount > 0

    async def mark_deleted(self, backup_ids: Iterable[str]) -> None:
        """Hides jobs whose storage is gone; the rows stay."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(list(backup_ids)), jobs.c.status.not_in(ACTIVE), jobs.c.deleted_at.is_(None))
                .values(deleted_at=utc_now())
            )


async def _nearest_below(connection: AsyncConnection, backup_id: str, gone: Collection[str]) -> str | None:
    """Returns the nearest backup below one that is not gone."""
    parents = select(jobs.c.parent_backup_id)
    below: str | None = await connection.scalar(parents.where(jobs.c.id == backup_id))
    while below in gone:
        below = await connection.scalar(parents.where(jobs.c.id == below))
    return below


async def _only(connection: AsyncConnection, prefix: str) -> str:
    # A whole id means that backup alone, deleted or not: of two made in one second, the first one's id begins the
    # second one's, and deleting the first again must not delete the second.
    if not prefix or await connection.scalar(select(jobs.c.id).where(jobs.c.id == prefix)) is not None:
        raise BackupNotFound(prefix)
    mine = begins_with(jobs.c.id, prefix, connection.dialect.name)
    query = SELECT_JOBS.with_only_columns(jobs.c.id).where(mine, jobs.c.deleted_at.is_(None), *admitted())
    # Not ordered by the database, which would read and sort all that begin so, up to a million.
    found = sorted(str(each) for each in await connection.scalars(query.limit(_CANDIDATES + 1)))
    if not found:
        raise BackupNotFound(prefix)
    if len(found) > 1:
        raise AmbiguousBackupId(prefix, found[:_CANDIDATES])
    return found[0]


async def _disks(connection: AsyncConnection, backup_id: str) -> tuple[JobDisk, ...]:
    query = select(disks).where(disks.c.backup_id == backup_id).order_by(disks.c.position)
    return tuple(to_disk(row) for row in await connection.execute(query))
