"""VM contexts: one per VM that a backup was ever asked for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import and_, func, or_, select

from sendense_backup.model import COMPLETED, VmContext, VmRef
from sendense_backup.store.rows import to_context
from sendense_backup.store.tables import contexts, jobs
from sendense_db.engine import Database


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
        wanted = [and_(contexts.c.vcenter_uuid == ref.vcenter_uuid, contexts.c.vm_uuid == ref.vm_uuid) for ref in refs]
        latest: dict[VmRef, tuple[str, datetime]] = {}
        # SQLite bounds the depth of an expression: ask in slices.
        for start in range(0, len(wanted), 200):
            newest = (
                select(
                    jobs.c.id,
                    jobs.c.completed_at,
                    contexts.c.vcenter_uuid,
                    contexts.c.vm_uuid,
                    func.row_number()
                    .over(partition_by=jobs.c.vm_context_id, order_by=jobs.c.created_at.desc())
                    .label("place"),
                )
                .join(contexts, contexts.c.context_id == jobs.c.vm_context_id)
                .where(jobs.c.status == COMPLETED, jobs.c.deleted_at.is_(None), or_(*wanted[start : start + 200]))
                .subquery()
            )
            async with self._database.read() as connection:
                for row in await connection.execute(select(newest).where(newest.c.place == 1)):
                    latest[VmRef(row.vcenter_uuid, row.vm_uuid)] = (row.id, row.completed_at)
        return latest
