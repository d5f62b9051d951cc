"""What the catalogue knows of VMs' earlier backups: the newest ones, the newest full, how much such a backup moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from sqlalchemy import and_, exists, func, literal, literal_column, select, union_all

from sendense_backup.model import COMPLETED, CONSOLIDATED, FULL, INCREMENTAL, VmRef
from sendense_backup.store.contexts import are
from sendense_backup.store.tables import contexts, disks, is_active, jobs, operations
from sendense_db.columns import UtcDateTime
from sendense_db.engine import Database

_SLICE = 500
"""VMs are asked for in slices: databases bound the values of a statement."""

_REMEMBERED = 15
"""How many of a VM's backups an estimate looks at."""

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class VmHistory:
    """A VM's past in one repository.

    Attributes:
        context_id: Its row; empty for a VM that was never backed up.
        latest_backup_id: The newest restore point; empty for none.
        last_full_at: When the newest full was made, by reading or by consolidation, deleted or not; None for none.
        last_read_full_at: When a full was last read from the VM, deleted or not; None for never.
        moved_bytes: By type, what the last backups moved, newest first.
        running_job_id: A job that has not ended; empty for none.
    """

    context_id: str = ""
    latest_backup_id: str = ""
    last_full_at: datetime | None = None
    last_read_full_at: datetime | None = None
    moved_bytes: dict[str, list[int]] | None = None
    running_job_id: str = ""

    def full_at(self, *, synthetic: bool) -> datetime | None:
        """Returns the moment from which the days to the next full count; None without any restore point.

        Retention may have merged that full into what builds on it: it was read all the same.

        Args:
            synthetic: Whether consolidation makes fulls, which then count as well.
        """
        if not self.latest_backup_id:
            return None
        return self.last_full_at if synthetic else self.last_read_full_at or self.last_full_at

    def estimate(self, backup_type: str) -> tuple[int, str]:
        """Returns the bytes that a backup of this type will move, -1 when not known, and how that is known."""
        known = (self.moved_bytes or {}).get(backup_type, [])
        if not known:
            return -1, "no such backup yet"
        word = ("full" if backup_type == FULL else "increment") + ("s" if len(known) > 1 else "")
        return int(median(known)), f"median of the last {len(known)} {word}" if len(known) > 1 else f"the last {word}"


class History:
    """Reads VMs' pasts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, refs: Iterable[VmRef], repository_id: str) -> dict[VmRef, VmHistory]:
        """Returns the past of each VM; those that were never backed up are missing."""
        wanted = list(refs)
        found: dict[VmRef, VmHistory] = {}
        for start in range(0, len(wanted), _SLICE):
            found |= await self._of(wanted[start : start + _SLICE], repository_id)
        return found

    async def _of(self, refs: Sequence[VmRef], repository_id: str) -> dict[VmRef, VmHistory]:
        async with self._database.read() as connection:
            known = {
                row.context_id: VmRef(row.vcenter_uuid, row.vm_uuid)
                for row in await connection.execute(
                    select(contexts.c.context_id, contexts.c.vcenter_uuid, contexts.c.vm_uuid).where(are(refs))
                )
            }
            ids = list(known)
            # The newest few of each VM by the index, instead of all of them: a VM may have thousands.
            good = (jobs.c.status == COMPLETED, jobs.c.repository_id == repository_id, jobs.c.deleted_at.is_(None))
            older = jobs.alias("older")
            remembered = (
                select(older.c.created_at)
                .where(older.c.vm_context_id == contexts.c.context_id, older.c.status == COMPLETED)
                .order_by(older.c.created_at.desc())
                .offset(_REMEMBERED - 1)
                .limit(1)
                .scalar_subquery()
            )
            since = select(
                contexts.c.context_id, func.coalesce(remembered, literal(_EVER, UtcDateTime)).label("since")
            ).where(contexts.c.context_id.in_(ids))
            window = since.subquery()
            newest = (
                select(jobs.c.vm_context_id, jobs.c.id, jobs.c.backup_type, jobs.c.bytes_transferred, jobs.c.created_at)
                .join(
                    window,
                    and_(jobs.c.vm_context_id == window.c.context_id, jobs.c.created_at >= window.c.since),
                )
                .where(*good)
                .order_by(jobs.c.created_at.desc())
            )
            backups = (await connection.execute(newest)).all()
            # Two of the words are part of the statement: an index of its own holds those jobs (see `has_status`).
            full = (
                jobs.c.vm_context_id == contexts.c.context_id,
                jobs.c.repository_id == repository_id,
                jobs.c.status == literal_column(repr(COMPLETED)),
                jobs.c.backup_type == literal_column(repr(FULL)),
            )
            merged = exists().where(disks.c.backup_id == jobs.c.id, disks.c.reason == CONSOLIDATED)
            newest_full = select(func.max(jobs.c.created_at)).where(*full).scalar_subquery()
            newest_read = select(func.max(jobs.c.created_at)).where(*full, ~merged).scalar_subquery()
            full_query = select(contexts.c.context_id, newest_full.label("made"), newest_read.label("read")).where(
                contexts.c.context_id.in_(ids)
            )
            fulls = {row.context_id: (row.made, row.read) for row in await connection.execute(full_query)}
            running = union_all(
                select(jobs.c.vm_context_id, jobs.c.id).where(jobs.c.vm_context_id.in_(ids), is_active(jobs)),
                select(operations.c.vm_context_id, operations.c.id).where(
                    operations.c.vm_context_id.in_(ids), is_active(operations)
                ),
            )
            active = {row.vm_context_id: row.id for row in await connection.execute(running)}
        latest: dict[str, str] = {}
        moved: dict[str, dict[str, list[int]]] = defaultdict(lambda: {FULL: [], INCREMENTAL: []})
        for row in backups:
            latest.setdefault(row.vm_context_id, row.id)
            moved[row.vm_context_id].setdefault(row.backup_type, []).append(row.bytes_transferred)
        return {
            ref: VmHistory(
                context_id=context_id,
                latest_backup_id=latest.get(context_id, ""),
                last_full_at=fulls[context_id][0],
                last_read_full_at=fulls[context_id][1],
                moved_bytes=moved[context_id],
                running_job_id=active.get(context_id, ""),
            )
            for context_id, ref in known.items()
        }
