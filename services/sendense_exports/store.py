"""The exports service's tables: exports with their holders, and the newest attempt seen of each job.

What always holds: an image has one living writer (a partial unique index); rows are never removed, so a name that was
ever served is not served again, by nobody (DESIGN 5: whoever still knows it must not write into another layer); a
mutation of an older attempt changes nothing; every living row has a lease.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import BigInteger, Boolean, Column, Index, RowMapping, String, Table, Text, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_db.columns import UtcDateTime, one_of, utc_now
from sendense_db.engine import Database, new_metadata
from sendense_db.requests import requests_table
from sendense_exports.errors import (
    ExportExistsError,
    ExportHeldError,
    ImageBusyError,
    StaleAttemptError,
)

metadata = new_metadata()

nbd_exports = Table(
    "nbd_exports",
    metadata,
    Column("export_name", String(63), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("path", Text, nullable=False),
    Column("format", String(8), nullable=False),
    Column("read_only", Boolean, nullable=False),
    Column("holder", String(191), nullable=False, index=True),
    Column("attempt", BigInteger, nullable=False),
    Column("agent_id", String(63), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    Column("withdrawn", Boolean, nullable=False),
    one_of("kind", "file", "block"),
    one_of("format", "qcow2", "raw"),
)
_WRITER = and_(nbd_exports.c.deleted_at.is_(None), nbd_exports.c.read_only.is_(False))
Index("uq_nbd_exports_writer", nbd_exports.c.path, unique=True, sqlite_where=_WRITER, postgresql_where=_WRITER)

nbd_export_fences = Table(
    "nbd_export_fences",
    metadata,
    Column("job_id", String(191), primary_key=True),
    Column("attempt", BigInteger, nullable=False),
)

requests = requests_table(metadata, "exports")


@dataclass(frozen=True, slots=True)
class Holder:
    """For which job, and which execution of it, a mutation is made."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ExportRow:
    """An export in the catalogue.

    Attributes:
        name: NBD export name.
        kind: `file` or `block`.
        path: Real path of the image or device.
        format: `qcow2` or `raw`.
        read_only: Whether clients may only read.
        holder: Whose it is.
        agent_id: The agent that may negotiate it through the tunnel; "" for none.
        created_at: When it was made.
        lease_until: When it may be swept, unless its holder asks for it again or clients use it.
        deleted_at: When it was removed, None while it lives.
        withdrawn: It was removed because it could not be served, so its name was not used.
    """

    name: str
    kind: str
    path: str
    format: str
    read_only: bool
    holder: Holder
    agent_id: str
    created_at: datetime
    lease_until: datetime
    deleted_at: datetime | None = None
    withdrawn: bool = False

    def is_same_as(self, other: ExportRow) -> bool:
        """Whether both want the same, for the same attempt."""
        return (self.kind, self.path, self.format, self.read_only, self.holder, self.agent_id) == (
            other.kind,
            other.path,
            other.format,
            other.read_only,
            other.holder,
            other.agent_id,
        )


class ExportStore:
    """Reads and writes the exports service's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, wanted: ExportRow) -> tuple[ExportRow, bool]:
        """Records an export; one that is there already for the same attempt stays and gets the new lease.

        Returns:
            The living row, and whether it is new.

        Raises:
            StaleAttemptError: A newer attempt of the job was seen.
            ExportExistsError: The name is taken or was used.
            ImageBusyError: The image has a writer, or has readers and a writer is wanted; names the holder.
        """
        async with self._database.begin() as connection:
            await _fence(connection, wanted.holder)
            there = await _get(connection, wanted.name)
            if there is not None and there.deleted_at is None:
                if not there.is_same_as(wanted):
                    raise ExportExistsError(wanted.name, there.holder.job_id, _describe(there))
                await _extend(connection, wanted.name, wanted.lease_until)
                return replace(there, lease_until=max(there.lease_until, wanted.lease_until)), False
            if there is not None and not (there.withdrawn and there.holder.job_id == wanted.holder.job_id):
                raise ExportExistsError(wanted.name, there.holder.job_id, _describe(there))
            await _require_free(connection, wanted)
            values = _values(wanted)
            if there is None:
                await connection.execute(nbd_exports.insert().values(values))
            else:
                await connection.execute(
                    nbd_exports.update().where(nbd_exports.c.export_name == wanted.name).values(values)
                )
        return wanted, True

    async def claim_removal(self, name: str, holder: Holder) -> ExportRow | None:
        """Returns the living export that the holder may remove now; None when there is none.

        Raises:
            StaleAttemptError: A newer attempt of the job was seen.
            ExportHeldError: Another job holds it.
        """
        async with self._database.begin() as connection:
            await _fence(connection, holder)
            there = await _get(connection, name)
        if there is None or there.deleted_at is not None:
            return None
        if there.holder.job_id != holder.job_id:
            raise ExportHeldError(name, there.holder.job_id)
        return there

    async def mark_deleted(self, name: str, *, withdrawn: bool = False) -> None:
        """Records that an export is not served any more; no error when it was recorded before.

        Args:
            name: The export.
            withdrawn: It never was served: the same job may ask for the name again.
        """
        async with self._database.begin() as connection:
            await connection.execute(
                nbd_exports.update()
                .where(nbd_exports.c.export_name == name, nbd_exports.c.deleted_at.is_(None))
                .values(deleted_at=utc_now(), withdrawn=withdrawn)
            )

    async def extend(self, name: str, until: datetime) -> None:
        """Makes a living export's lease last until then, if it ends earlier."""
        async with self._database.begin() as connection:
            await _extend(connection, name, until)

    async def extend_all(self, until: datetime) -> None:
        """Makes every living export's lease last until then at least."""
        async with self._database.begin() as connection:
            await connection.execute(
                nbd_exports.update()
                .where(nbd_exports.c.deleted_at.is_(None), nbd_exports.c.lease_until < until)
                .values(lease_until=until)
            )

    async def expired(self, now: datetime) -> list[ExportRow]:
        """Returns the living exports whose lease has run out, the oldest first."""
        query = (
            select(nbd_exports)
            .where(nbd_exports.c.deleted_at.is_(None), nbd_exports.c.lease_until < now)
            .order_by(nbd_exports.c.lease_until)
        )
        async with self._database.read() as connection:
            return [_row(row) for row in (await connection.execute(query)).mappings()]

    async def get(self, name: str) -> ExportRow | None:
        """Returns a living export."""
        async with self._database.read() as connection:
            row = await _get(connection, name)
        return row if row is not None and row.deleted_at is None else None

    async def living(self) -> list[ExportRow]:
        """Returns all living exports by name."""
        query = select(nbd_exports).where(nbd_exports.c.deleted_at.is_(None)).order_by(nbd_exports.c.export_name)
        async with self._database.read() as connection:
            return [_row(row) for row in (await connection.execute(query)).mappings()]

    async def deleted(self, names: Collection[str]) -> list[ExportRow]:
        """Returns those of the named exports that were removed."""
        query = select(nbd_exports).where(nbd_exports.c.export_name.in_(names), nbd_exports.c.deleted_at.is_not(None))
        async with self._database.read() as connection:
            return [_row(row) for row in (await connection.execute(query)).mappings()]

    async def check(self) -> None:
        """Raises OSError when the database does not answer."""
        await self._database.check()


async def _fence(connection: AsyncConnection, holder: Holder) -> None:
    """Refuses an older attempt than the newest that was seen, and remembers a newer one."""
    query = select(nbd_export_fences.c.attempt).where(nbd_export_fences.c.job_id == holder.job_id)
    newest = (await connection.execute(query.with_for_update())).scalar_one_or_none()
    if newest is None:
        values = {"job_id": holder.job_id, "attempt": holder.attempt}
        await connection.execute(nbd_export_fences.insert().values(values))
    elif holder.attempt < newest:
        raise StaleAttemptError(holder.job_id, holder.attempt, newest)
    elif holder.attempt > newest:
        await connection.execute(
            nbd_export_fences.update().where(nbd_export_fences.c.job_id == holder.job_id).values(attempt=holder.attempt)
        )


async def _extend(connection: AsyncConnection, name: str, until: datetime) -> None:
    await connection.execute(
        nbd_exports.update()
        .where(
            nbd_exports.c.export_name == name,
            nbd_exports.c.deleted_at.is_(None),
            nbd_exports.c.lease_until < until,
        )
        .values(lease_until=until)
    )


async def _require_free(connection: AsyncConnection, wanted: ExportRow) -> None:
    query = select(nbd_exports).where(
        nbd_exports.c.path == wanted.path,
        nbd_exports.c.deleted_at.is_(None),
        nbd_exports.c.export_name != wanted.name,
    )
    if wanted.read_only:
        query = query.where(nbd_exports.c.read_only.is_(False))
    other = (await connection.execute(query.limit(1))).mappings().first()
    if other is None:
        return
    row = _row(other)
    how = "is being read" if row.read_only else "is being written"
    problem = f"{how} by {row.holder.job_id} through the export {row.name}"
    raise ImageBusyError(wanted.path, problem, holder=row.holder.job_id, export_name=row.name)


async def _get(connection: AsyncConnection, name: str) -> ExportRow | None:
    query = select(nbd_exports).where(nbd_exports.c.export_name == name)
    row = (await connection.execute(query)).mappings().first()
    return _row(row) if row is not None else None


def _row(row: RowMapping) -> ExportRow:
    return ExportRow(
        name=row["export_name"],
        kind=row["kind"],
        path=row["path"],
        format=row["format"],
        read_only=row["read_only"],
        holder=Holder(row["holder"], row["attempt"]),
        agent_id=row["agent_id"],
        created_at=row["created_at"],
        lease_until=row["lease_until"],
        deleted_at=row["deleted_at"],
        withdrawn=row["withdrawn"],
    )


def _values(row: ExportRow) -> dict[str, object]:
    return {
        "export_name": row.name,
        "kind": row.kind,
        "path": row.path,
        "format": row.format,
        "read_only": row.read_only,
        "holder": row.holder.job_id,
        "attempt": row.holder.attempt,
        "agent_id": row.agent_id,
        "created_at": row.created_at,
        "lease_until": row.lease_until,
        "deleted_at": row.deleted_at,
        "withdrawn": row.withdrawn,
    }


def _describe(row: ExportRow) -> str:
    when = "was" if row.deleted_at is not None else "is"
    return f"it {when} for {row.path}, attempt {row.holder.attempt} of {row.holder.job_id}"
