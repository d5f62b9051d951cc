"""Rows of `backup_repositories`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, delete, insert, or_, select, update

from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_repository.options import RepositoryOptions
from sendense_repository.records import RepositoryRecord
from sendense_repository.store.tables import backup_chains, backup_layers, point_leases, restore_points
from sendense_repository.store.tables import backup_repositories as table


class Repositories:
    """Registered repositories."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[RepositoryRecord]:
        """Returns every repository by name."""
        async with self._database.read() as connection:
            rows = await connection.execute(_living().order_by(table.c.name))
            return [_record(row) for row in rows]

    async def find(self, id_or_name: str) -> RepositoryRecord | None:
        """Returns the repository of that id, or else of that name."""
        query = _living().where(or_(table.c.id == id_or_name, table.c.name == id_or_name))
        async with self._database.read() as connection:
            records = [_record(row) for row in await connection.execute(query)]
        return min(records, key=lambda record: record.repository_id != id_or_name, default=None)

    async def add(self, record: RepositoryRecord) -> None:
        """Registers a repository."""
        async with self._database.begin() as connection:
            # One that was forgotten is taken up again: its files never went.
            known = await connection.execute(
                update(table)
                .where(table.c.id == record.repository_id, table.c.deleted_at.is_not(None))
                .values(
                    name=record.name,
                    repository_type=record.repository_type,
                    config={"path": str(record.path), **record.options.as_json()},
                    enabled=record.enabled,
                    updated_at=record.updated_at,
                    deleted_at=None,
                )
            )
            if known.rowcount:
                return
            await connection.execute(
                insert(table).values(
                    id=record.repository_id,
                    name=record.name,
                    repository_type=record.repository_type,
                    config={"path": str(record.path), **record.options.as_json()},
                    enabled=record.enabled,
                    total_size_bytes=record.total_size_bytes,
                    available_size_bytes=record.available_size_bytes,
                    created_at=record.created_at,
                    updated_at=record.updated_at,
                )
            )

    async def update(self, record: RepositoryRecord) -> None:
        """Keeps name, settings and whether it is enabled."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(table)
                .where(table.c.id == record.repository_id)
                .values(
                    name=record.name,
                    enabled=record.enabled,
                    config={"path": str(record.path), **record.options.as_json()},
                    updated_at=utc_now(),
                )
            )

    async def forget(self, repository_id: str) -> None:
        """Says that a repository, its points and its layers are not the catalogue's any more, at once."""
        now = utc_now()
        async with self._database.begin() as connection:
            for rows in (backup_layers, restore_points):
                await connection.execute(
                    update(rows)
                    .where(rows.c.repository_id == repository_id, rows.c.deleted_at.is_(None))
                    .values(deleted_at=now)
                )
            points = select(restore_points.c.backup_id).where(restore_points.c.repository_id == repository_id)
            await connection.execute(delete(point_leases).where(point_leases.c.backup_id.in_(points)))
            layers = select(backup_layers.c.chain_id).where(backup_layers.c.repository_id == repository_id)
            await connection.execute(delete(backup_chains).where(backup_chains.c.id.in_(layers)))
            await connection.execute(
                update(restore_points).where(restore_points.c.repository_id == repository_id).values(state="deleted")
            )
            # Its name is free again; no name that can be asked for has a tilde.
            await connection.execute(
                update(table)
                .where(table.c.id == repository_id)
                .values(name=f"~{repository_id}", enabled=False, deleted_at=now)
            )

    async def record_room(self, repository_id: str, total_bytes: int, available_bytes: int) -> None:
        """Keeps the room as just looked at."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(table)
                .where(table.c.id == repository_id)
                .values(total_size_bytes=total_bytes, available_size_bytes=available_bytes, updated_at=utc_now())
            )


def _living() -> Select[Any]:
    return select(table).where(table.c.deleted_at.is_(None))


def _record(row: Row[Any]) -> RepositoryRecord:
    return RepositoryRecord(
        repository_id=row.id,
        name=row.name,
        repository_type=row.repository_type,
        path=Path(row.config["path"]),
        enabled=row.enabled,
        total_size_bytes=row.total_size_bytes,
        available_size_bytes=row.available_size_bytes,
        created_at=row.created_at,
        updated_at=row.updated_at,
        options=RepositoryOptions.of(row.config),
    )
