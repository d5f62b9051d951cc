"""Rows of `restore_points` and `backup_chains`: what is committed, and each disk's current chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Column, Row, Select, Table, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.records import LayerRecord, PointRecord
from sendense_repository.store.tables import backup_chains, backup_layers, point_leases, restore_points

table = restore_points


class Points:
    """Restore points."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, backup_id: str) -> PointRecord | None:
        """Returns a committed point."""
        query = select(table).where(table.c.backup_id == backup_id, table.c.state == "committed")
        return next(iter(await self._fetch(query)), None)

    async def find_any(self, backup_id: str) -> PointRecord | None:
        """Returns a point in whatever state, also when it was deleted."""
        return next(iter(await self._fetch(select(table).where(table.c.backup_id == backup_id))), None)

    async def latest(self, repository_id: str, vm_uuid: str) -> PointRecord | None:
        """Returns a VM's newest committed point in a repository."""
        return next(iter(await self._fetch(_committed(repository_id, vm_uuid).limit(1))), None)

    async def of_vm(self, repository_id: str, vm_uuid: str) -> list[PointRecord]:
        """Returns a VM's committed points, newest first."""
        return await self._fetch(_committed(repository_id, vm_uuid))

    async def vms(self, repository_id: str) -> list[str]:
        """Returns the VMs that have committed points in a repository."""
        query = (
            select(table.c.vm_uuid)
            .where(table.c.repository_id == repository_id, table.c.state == "committed")
            .distinct()
            .order_by(table.c.vm_uuid)
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def deleting(self) -> list[PointRecord]:
        """Returns the points whose deletion began and has not ended, newest first for each VM."""
        return await self._fetch(select(table).where(table.c.state == "deleting").order_by(table.c.sequence.desc()))

    async def known_ids(self, repository_id: str, vm_uuid: str) -> frozenset[str]:
        """Returns the ids of all points that a VM has or ever had in a repository."""
        query = select(table.c.backup_id).where(table.c.repository_id == repository_id, table.c.vm_uuid == vm_uuid)
        async with self._database.read() as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def last_sequence(self, repository_id: str, vm_uuid: str) -> int:
        """Returns the highest sequence that a VM's points ever had in a repository, 0 for none."""
        query = select(func.max(table.c.sequence)).where(
            table.c.repository_id == repository_id, table.c.vm_uuid == vm_uuid
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one() or 0

    async def chain_ids(self, vm_context_id: str) -> list[str]:
        """Returns the chains that a VM context's committed points use."""
        query = (
            select(backup_layers.c.chain_id)
            .join(table, table.c.backup_id == backup_layers.c.point_id)
            .where(table.c.vm_context_id == vm_context_id, table.c.state == "committed")
            .distinct()
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def add(self, record: PointRecord, layer_ids: Sequence[str]) -> None:
        """Records a point that was committed on storage, with its layers and their chains, at once."""
        async with self._database.begin() as connection:
            await connection.execute(insert(table).values(**asdict(record)))
            await connection.execute(
                update(backup_layers).where(backup_layers.c.layer_id.in_(layer_ids)).values(point_id=record.backup_id)
            )
            await _refresh_chains(connection, record.vm_context_id)

    async def adopt(self, record: PointRecord, layers: Sequence[LayerRecord]) -> None:
        """Records a point that was found on storage, with its layers and their chains, at once.

        Rows of an earlier life, when the repository was forgotten, are taken up again.
        """
        async with self._database.begin() as connection:
            await _put(connection, table, table.c.backup_id, {**asdict(record), "deleted_at": None})
            for layer in layers:
                await _put(connection, backup_layers, backup_layers.c.layer_id, asdict(layer))
            await _refresh_chains(connection, record.vm_context_id)

    async def begin_delete(self, backup_ids: Sequence[str]) -> None:
        """Says that points are being deleted: from now on nobody sees them, and the deletion will be finished."""
        async with self._database.begin() as connection:
            await connection.execute(update(table).where(table.c.backup_id.in_(backup_ids)).values(state="deleting"))

    async def finish_delete(self, record: PointRecord) -> None:
        """Says that a point's files are gone: its row, its layers, its leases and its chains, at once."""
        now = utc_now()
        async with self._database.begin() as connection:
            await connection.execute(
                update(backup_layers).where(backup_layers.c.point_id == record.backup_id).values(deleted_at=now)
            )
            await connection.execute(delete(point_leases).where(point_leases.c.backup_id == record.backup_id))
            await connection.execute(
                update(table).where(table.c.backup_id == record.backup_id).values(state="deleted", deleted_at=now)
            )
            await _refresh_chains(connection, record.vm_context_id)

    async def _fetch(self, query: Select[Any]) -> list[PointRecord]:
        async with self._database.read() as connection:
            return [_record(row) for row in await connection.execute(query)]


async def _put(connection: AsyncConnection, rows: Table, key: Column[Any], values: dict[str, Any]) -> None:
    """Writes a row in place of the one that has its key, if there is one."""
    same = key == values[key.name]
    if (await connection.execute(select(key).where(same))).one_or_none() is None:
        await connection.execute(insert(rows).values(**values))
    else:
        await connection.execute(update(rows).where(same).values(**values))


def _committed(repository_id: str, vm_uuid: str) -> Select[Any]:
    return (
        select(table)
        .where(table.c.repository_id == repository_id, table.c.vm_uuid == vm_uuid, table.c.state == "committed")
        .order_by(table.c.sequence.desc())
    )


def _record(row: Row[Any]) -> PointRecord:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented name, underscored to spare columns
    del values["deleted_at"]
    return PointRecord(**values)


async def _refresh_chains(connection: AsyncConnection, vm_context_id: str) -> None:
    """Makes `backup_chains` say which chain each disk of a VM context has now: that of its newest committed layer."""
    layers, chains = backup_layers, backup_chains
    query = (
        select(layers, table.c.sequence, table.c.committed_at)
        .join(table, table.c.backup_id == layers.c.point_id)
        .where(table.c.vm_context_id == vm_context_id, table.c.state == "committed", layers.c.deleted_at.is_(None))
        .order_by(table.c.sequence)
    )
    rows = list(await connection.execute(query))
    newest_of_repository = {(row.repository_id, row.disk_id): row for row in rows}
    newest = {row.disk_id: row for row in sorted(newest_of_repository.values(), key=lambda row: row.committed_at)}
    known = {
        row.id: row for row in await connection.execute(select(chains).where(chains.c.vm_context_id == vm_context_id))
    }
    await connection.execute(delete(chains).where(chains.c.vm_context_id == vm_context_id))
    now = utc_now()
    for disk_id, last in newest.items():
        members = [row for row in rows if row.chain_id == last.chain_id]
        values: dict[str, object] = {
            "full_backup_id": members[0].backup_id,
            "latest_backup_id": last.backup_id,
            "total_backups": len(members),
            "total_size_bytes": sum(row.stored_bytes for row in members),
        }
        before = known.get(last.chain_id)
        same = before is not None and all(getattr(before, name) == value for name, value in values.items())
        await connection.execute(
            insert(chains).values(
                id=last.chain_id,
                vm_context_id=vm_context_id,
                disk_id=disk_id,
                created_at=before.created_at if before is not None else now,
                updated_at=before.updated_at if before is not None and same else now,
                **values,
            )
        )
