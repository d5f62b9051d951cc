"""VM contexts: one per VM that a backup was ever asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, false, or_, select

from sendense_backup.model import COMPLETED, VmContext, VmRef
from sendense_backup.store.rows import to_context
from sendense_backup.store.tables import contexts, jobs
from sendense_db.engine import Database

_SLICE = 500
"""VMs are asked for in slices: databases bound the values of a statement."""


class Contexts:
    """Reads VM contexts; `Admission` makes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def named(self, vm_name: str) -> list[VmContext]:
        """Returns the contexts of VMs that were last seen with this name."""
        return await self._where(contexts.c.vm_name == vm_name)

    async def of_uuid(self, vm_uuid: str) -> list[VmContext]:
        """Returns the contexts with this instance uuid: more than one only where two vCenters share it."""
        return await self._where(contexts.c.vm_uuid == vm_uuid)

    async def _where(self, condition: object) -> list[VmContext]:
        query = select(contexts).where(condition, contexts.c.deleted_at.is_(None)).order_by(contexts.c.context_id)  # type: ignore[arg-type]
        async with self._database.read() as connection:
            return [to_context(row) for row in await connection.execute(query)]

    async def latest_backups(self, refs: Iterable[VmRef]) -> dict[VmRef, tuple[str, datetime]]:
        """Returns for each of these VMs that has one its newest completed backup, and when that was made."""
        wanted = list(refs)
        latest: dict[VmRef, tuple[str, datetime]] = {}
        newest = (
            select(jobs.c.id)
            .where(
                jobs.c.vm_context_id == contexts.c.context_id,
                jobs.c.status == COMPLETED,
                jobs.c.deleted_at.is_(None),
            )
            .order_by(jobs.c.created_at.desc())
            .limit(1)
            .scalar_subquery()
        )
        # The newest of each by the index, not all of them ranked: a VM may have thousands.
        ids = select(contexts.c.vcenter_uuid, contexts.c.vm_uuid, newest.label("newest"))
        for start in range(0, len(wanted), _SLICE):
            found = ids.where(are(wanted[start : start + _SLICE])).subquery()
            query = select(found, jobs.c.completed_at).join(jobs, jobs.c.id == found.c.newest)
            async with self._database.read() as connection:
                for row in await connection.execute(query):
                    latest[VmRef(row.vcenter_uuid, row.vm_uuid)] = (row.newest, row.completed_at)
        return latest


def are(refs: Sequence[VmRef]) -> ColumnElement[bool]:
    """Returns the condition that a context is of one of these VMs."""
    by_vcenter: dict[str, list[str]] = {}
    for ref in refs:
        by_vcenter.setdefault(ref.vcenter_uuid, []).append(ref.vm_uuid)
    return or_(
        false(),
        *(and_(contexts.c.vcenter_uuid == each, contexts.c.vm_uuid.in_(uuids)) for each, uuids in by_vcenter.items()),
    )
