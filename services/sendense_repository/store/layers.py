"""Rows of `backup_layers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, Select, insert, select, update

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.records import LayerRecord
from sendense_repository.store.tables import backup_layers as table


class Layers:
    """Layers, partial and sealed, committed and not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, layer_id: str) -> LayerRecord | None:
        """Returns a layer that was not removed."""
        query = select(table).where(table.c.layer_id == layer_id, table.c.deleted_at.is_(None))
        return next(iter(await self._fetch(query)), None)

    async def of_job(self, repository_id: str, backup_id: str) -> list[LayerRecord]:
        """Returns the layers that a job has."""
        return await self._fetch(
            _living().where(table.c.repository_id == repository_id, table.c.backup_id == backup_id)
        )

    async def of_vm(self, repository_id: str, vm_uuid: str) -> list[LayerRecord]:
        """Returns a VM's layers in a repository, oldest first."""
        return await self._fetch(_living().where(table.c.repository_id == repository_id, table.c.vm_uuid == vm_uuid))

    async def of_points(self, backup_ids: Sequence[str]) -> list[LayerRecord]:
        """Returns the layers that points hold, by disk."""
        query = _living().where(table.c.point_id.in_(backup_ids)).order_by(None).order_by(table.c.disk_id)
        return await self._fetch(query)

    async def of_chains(self, chain_ids: Sequence[str]) -> list[LayerRecord]:
        """Returns the committed layers of chains, oldest first."""
        return await self._fetch(_living().where(table.c.chain_id.in_(chain_ids), table.c.point_id.is_not(None)))

    async def partial(self, repository_id: str) -> list[LayerRecord]:
        """Returns the layers of a repository that are being written."""
        return await self._fetch(_living().where(table.c.repository_id == repository_id, table.c.state == "partial"))

    async def uncommitted(self, repository_id: str) -> list[LayerRecord]:
        """Returns the layers of a repository that belong to no point: of running backups, or left by a crash."""
        return await self._fetch(_living().where(table.c.repository_id == repository_id, table.c.point_id.is_(None)))

    async def sealed(self, repository_id: str) -> list[LayerRecord]:
        """Returns the sealed layers of a repository, oldest first."""
        return await self._fetch(_living().where(table.c.repository_id == repository_id, table.c.state == "sealed"))

    async def names(self, repository_id: str, vm_uuid: str, disk_id: int) -> frozenset[str]:
        """Returns the names that a disk's layers have or ever had."""
        query = select(table.c.relative_path).where(
            table.c.repository_id == repository_id, table.c.vm_uuid == vm_uuid, table.c.disk_id == disk_id
        )
        async with self._database.read() as connection:
            return frozenset(path.rpartition("/")[2] for path in (await connection.execute(query)).scalars())

    async def disk_numbers(self, vm_uuid: str) -> dict[str, int]:
        """Returns the numbers that a VM's disks have in any repository."""
        query = select(table.c.disk_identity, table.c.disk_id).where(table.c.vm_uuid == vm_uuid)
        async with self._database.read() as connection:
            return {row.disk_identity: row.disk_id for row in await connection.execute(query)}

    async def add(self, record: LayerRecord) -> None:
        """Adds a layer."""
        async with self._database.begin() as connection:
            await connection.execute(insert(table).values(**asdict(record)))

    async def record_areas(self, layer_id: str, digest: str, count: int, total_bytes: int) -> None:
        """Keeps what was fixed; from now on it is known how much will be written."""
        await self._update(
            layer_id, areas_digest=digest, area_count=count, area_bytes=total_bytes, estimated_bytes=total_bytes
        )

    async def record_seal(self, record: LayerRecord) -> None:
        """Keeps what the seal found; `record` is the layer as it is now."""
        await self._update(
            record.layer_id,
            state="sealed",
            journal_digest=record.journal_digest,
            metadata_digest=record.metadata_digest,
            digest=record.digest,
            reason=record.reason,
            stored_bytes=record.stored_bytes,
            sealed_at=record.sealed_at,
        )

    async def record_merge(self, record: LayerRecord) -> None:
        """Keeps what a layer became when the layers below were merged into it."""
        await self._update(
            record.layer_id,
            backup_type=record.backup_type,
            parent_layer_id=record.parent_layer_id,
            areas_digest=record.areas_digest,
            area_count=record.area_count,
            area_bytes=record.area_bytes,
            journal_digest=record.journal_digest,
            metadata_digest=record.metadata_digest,
            digest=record.digest,
            stored_bytes=record.stored_bytes,
        )

    async def poison(self, layer_id: str, finding: str) -> None:
        """Makes a layer unusable for good."""
        await self._update(layer_id, poison=finding)

    async def mark_deleted(self, layer_id: str) -> None:
        """Says that a layer's files are gone."""
        await self._update(layer_id, deleted_at=utc_now())

    async def _update(self, layer_id: str, **values: object) -> None:
        async with self._database.begin() as connection:
            await connection.execute(update(table).where(table.c.layer_id == layer_id).values(**values))

    async def _fetch(self, query: Select[Any]) -> list[LayerRecord]:
        async with self._database.read() as connection:
            return [layer_record(row) for row in await connection.execute(query)]


def _living() -> Select[Any]:
    return select(table).where(table.c.deleted_at.is_(None)).order_by(table.c.created_at, table.c.relative_path)


def layer_record(row: Row[Any]) -> LayerRecord:
    """Returns a row of `backup_layers` as a record."""
    return LayerRecord(**row._mapping)  # noqa: SLF001  # SQLAlchemy's documented name, underscored to spare columns
