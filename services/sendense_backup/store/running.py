"""What a workflow writes about its job.

Each write names the attempt: one of an older attempt raises `Superseded` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.errors import Superseded
from sendense_backup.model import ACTIVE, FAILED, PENDING, RUNNING, Disk, Job, JobDisk
from sendense_backup.store.rows import SELECT_JOBS, to_disk, to_job
from sendense_backup.store.tables import disks, jobs
from sendense_db.columns import utc_now
from sendense_db.engine import Database


class Running:
    """A job while it runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, backup_id: str, expected: int | None = None) -> int | None:
        """Makes a new attempt of a job that has not ended: every older one is refused from now on.

        Args:
            backup_id: The job.
            expected: Only when this is the current attempt.

        Returns:
            The new attempt; None when the job has ended.

        Raises:
            Superseded: The current attempt is another one than expected.
        """
        async with self._database.begin() as connection:
            row = (
                await connection.execute(
                    select(jobs.c.attempt, jobs.c.status).where(jobs.c.id == backup_id).with_for_update()
                )
            ).one()
            if expected is not None and row.attempt != expected:
                raise Superseded(backup_id, expected)
            if row.status not in ACTIVE:
                return None
            await connection.execute(update(jobs).where(jobs.c.id == backup_id).values(attempt=row.attempt + 1))
        return int(row.attempt) + 1

    async def fence_ended(self, backup_id: str) -> int:
        """Makes a new attempt of a job that has ended, to give back what it still holds."""
        async with self._database.begin() as connection:
            attempt = await connection.scalar(
                update(jobs).where(jobs.c.id == backup_id).values(attempt=jobs.c.attempt + 1).returning(jobs.c.attempt)
            )
        return int(attempt or 0)

    async def read(self, backup_id: str) -> Job:
        """Returns the job with its disks, deleted or not."""
        async with self._database.read() as connection:
            row = (await connection.execute(SELECT_JOBS.where(jobs.c.id == backup_id))).one()
            found = await connection.execute(
                select(disks).where(disks.c.backup_id == backup_id).order_by(disks.c.position)
            )
            return to_job(row, tuple(to_disk(each) for each in found))

    async def facts_for_point(self, backup_id: str) -> tuple[datetime | None, str]:
        """Returns when the job's snapshot was made, and the VM's hardware as JSON."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(select(jobs.c.snapshot_at, jobs.c.hardware_json).where(jobs.c.id == backup_id))
            ).one()
        return row.snapshot_at, row.hardware_json or ""

    async def update_job(self, backup_id: str, attempt: int, **values: Any) -> None:
        """Writes columns of the job."""
        async with self._database.begin() as connection:
            await _mine(connection, backup_id, attempt, **values)

    async def set_type(self, backup_id: str, attempt: int, backup_type: str, parent_backup_id: str) -> None:
        """Records the job's type and what it builds on; a parent that the catalogue does not know stays empty.

        The repository may hold restore points that this catalogue never saw (another installation's, or of a catalogue
        that was lost): increments build on them, but a foreign key cannot.
        """
        async with self._database.begin() as connection:
            known = await connection.scalar(select(jobs.c.id).where(jobs.c.id == parent_backup_id))
            await _mine(connection, backup_id, attempt, backup_type=backup_type, parent_backup_id=known)

    async def enter(self, backup_id: str, attempt: int, phase: str, position: int | None = None) -> bool:
        """Records the step that the job (and one of its disks) is at; returns whether somebody asked it to stop."""
        async with self._database.begin() as connection:
            await _mine(connection, backup_id, attempt, phase=phase)
            if position is not None:
                await _write_disk(connection, backup_id, position, phase=phase, rate_bytes_per_second=0)
            return bool(await connection.scalar(select(jobs.c.cancel_requested).where(jobs.c.id == backup_id)))

    async def start(self, backup_id: str, attempt: int) -> None:
        """Marks the job as running; when it began is kept from its first attempt."""
        async with self._database.begin() as connection:
            await _mine(
                connection,
                backup_id,
                attempt,
                status=RUNNING,
                started_at=func.coalesce(jobs.c.started_at, utc_now()),
            )

    async def end(self, backup_id: str, attempt: int, status: str) -> None:
        """Gives the job its final status, once. Disks that are not done share its failure."""
        async with self._database.begin() as connection:
            if await connection.scalar(select(jobs.c.status).where(jobs.c.id == backup_id)) not in ACTIVE:
                raise Superseded(backup_id, attempt)
            await _mine(
                connection,
                backup_id,
                attempt,
                status=status,
                phase="",
                rate_bytes_per_second=0,
                completed_at=utc_now(),
            )
            await connection.execute(
                update(disks)
                .where(disks.c.backup_id == backup_id, disks.c.status.in_((PENDING, RUNNING)))
                .values(status=FAILED)
            )
            await connection.execute(
                update(disks).where(disks.c.backup_id == backup_id).values(phase="", rate_bytes_per_second=0)
            )

    async def put_disks(self, backup_id: str, attempt: int, found: Sequence[tuple[Disk, str]]) -> None:
        """Records the job's disks as the snapshot has them; again replaces them.

        Args:
            backup_id: The job.
            attempt: The writer's attempt.
            found: Each disk with its status, `pending` or `skipped`.
        """
        async with self._database.begin() as connection:
            await _mine(connection, backup_id, attempt)
            await connection.execute(delete(disks).where(disks.c.backup_id == backup_id))
            for position, (disk, status) in enumerate(found):
                await connection.execute(
                    insert(disks).values(
                        backup_id=backup_id,
                        position=position,
                        device_key=disk.device_key,
                        identity=disk.identity,
                        label=disk.label,
                        capacity_bytes=disk.capacity_bytes,
                        change_id=disk.change_id,
                        reason=disk.skip_reason if status == "skipped" else "",
                        status=status,
                    )
                )

    async def disk(self, backup_id: str, position: int) -> JobDisk:
        """Returns one disk of a job."""
        query = select(disks).where(disks.c.backup_id == backup_id, disks.c.position == position)
        async with self._database.read() as connection:
            return to_disk((await connection.execute(query)).one())

    async def update_disk(self, backup_id: str, attempt: int, position: int, **values: Any) -> None:
        """Writes columns of a disk and adds the job's byte counts up anew."""
        async with self._database.begin() as connection:
            await _write_disk(connection, backup_id, position, **values)
            await _mine(connection, backup_id, attempt, **await _sums(connection, backup_id))

    async def progress(self, backup_id: str, attempt: int, position: int, done_bytes: int, rate: int) -> bool:
        """Records how far a disk is, and the rate in bytes a second.

        Returns:
            Whether somebody asked the job to stop.
        """
        async with self._database.begin() as connection:
            await _write_disk(connection, backup_id, position, bytes_transferred=done_bytes, rate_bytes_per_second=rate)
            sums = await _sums(connection, backup_id)
            await _mine(connection, backup_id, attempt, rate_bytes_per_second=rate, **sums)
            wanted = await connection.scalar(select(jobs.c.cancel_requested).where(jobs.c.id == backup_id))
        return bool(wanted)


async def _mine(connection: AsyncConnection, backup_id: str, attempt: int, **values: Any) -> None:
    changed = await connection.execute(
        update(jobs).where(jobs.c.id == backup_id, jobs.c.attempt == attempt).values(attempt=attempt, **values)
    )
    if changed.rowcount == 0:
        raise Superseded(backup_id, attempt)


async def _write_disk(connection: AsyncConnection, backup_id: str, position: int, **values: Any) -> None:
    await connection.execute(
        update(disks).where(disks.c.backup_id == backup_id, disks.c.position == position).values(**values)
    )


async def _sums(connection: AsyncConnection, backup_id: str) -> dict[str, int]:
    row = (
        await connection.execute(
            select(
                func.coalesce(func.sum(disks.c.bytes_transferred), 0).label("done"),
                func.coalesce(func.sum(disks.c.total_bytes), 0).label("total"),
            ).where(disks.c.backup_id == backup_id)
        )
    ).one()
    return {"bytes_transferred": int(row.done), "total_bytes": int(row.total)}
