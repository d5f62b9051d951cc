"""Leases: what a job has acquired. The row is written before the resource is made, so nothing can be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update

from sendense_backup.model import ACTIVE
from sendense_backup.store.tables import jobs, leases
from sendense_db.columns import utc_now
from sendense_db.engine import Database

SNAPSHOT = "snapshot"
LAYER = "layer"
EXPORT = "export"

HELD = "held"
RELEASED = "released"
KEPT = "kept"
"""State of a layer that a restore point holds now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease.

    Attributes:
        lease_id: Grows; undoing goes backwards by it.
        kind: `snapshot`, `layer` or `export`.
        resource: The VM's uuid, the disk's position, or the export's name.
        resource_id: What the owner called it; empty as long as it is not known whether it was made.
        attempt: The attempt that acquired it.
    """

    lease_id: int
    backup_id: str
    kind: str
    resource: str
    resource_id: str
    attempt: int


class Leases:
    """The leases of all jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, backup_id: str, kind: str, resource: str, attempt: int) -> Lease:
        """Writes a lease, or returns the one that the job holds for this resource already."""
        async with self._database.begin() as connection:
            held = (
                await connection.execute(
                    select(leases).where(
                        leases.c.backup_id == backup_id,
                        leases.c.kind == kind,
                        leases.c.resource == resource,
                        leases.c.state == HELD,
                    )
                )
            ).first()
            if held is not None:
                return _lease(held)
            made = await connection.execute(
                insert(leases)
                .values(backup_id=backup_id, kind=kind, resource=resource, attempt=attempt)
                .returning(leases)
            )
            return _lease(made.one())

    async def used(self, kind: str, resource: str) -> bool:
        """Tells whether any job, ever, had a lease on this resource."""
        query = select(leases.c.lease_id).where(leases.c.kind == kind, leases.c.resource == resource).limit(1)
        async with self._database.read() as connection:
            return await connection.scalar(query) is not None

    async def acquired(self, lease: Lease, resource_id: str) -> None:
        """Records what the owner called the resource."""
        await self._write(lease, resource_id=resource_id)

    async def end(self, lease: Lease, state: str = RELEASED) -> None:
        """Ends a lease: its resource is gone (`released`) or belongs to a restore point (`kept`)."""
        await self._write(lease, state=state, ended_at=utc_now())

    async def held(self, backup_id: str, kind: str = "") -> list[Lease]:
        """Returns what a job holds, the newest first, which is the order of undoing."""
        query = select(leases).where(leases.c.backup_id == backup_id, leases.c.state == HELD)
        if kind:
            query = query.where(leases.c.kind == kind)
        async with self._database.read() as connection:
            return [_lease(row) for row in await connection.execute(query.order_by(leases.c.lease_id.desc()))]

    async def left_behind(self, vm_context_id: str = "") -> list[str]:
        """Returns the jobs (of one VM) that have ended and still hold something, oldest first."""
        query = (
            select(jobs.c.id)
            .join(leases, leases.c.backup_id == jobs.c.id)
            .where(leases.c.state == HELD, jobs.c.status.not_in(ACTIVE))
            .group_by(jobs.c.id, jobs.c.created_at)
            .order_by(jobs.c.created_at)
        )
        if vm_context_id:
            query = query.where(jobs.c.vm_context_id == vm_context_id)
        async with self._database.read() as connection:
            return [str(each) for each in await connection.scalars(query)]

    async def _write(self, lease: Lease, **values: Any) -> None:
        async with self._database.begin() as connection:
            await connection.execute(update(leases).where(leases.c.lease_id == lease.lease_id).values(**values))


def _lease(row: Row[Any]) -> Lease:
    return Lease(row.lease_id, row.backup_id, row.kind, row.resource, row.resource_id, row.attempt)
