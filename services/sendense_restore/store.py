"""The service's table: which mounts exist, so that a lost one's lease is given back even when its directory is gone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Column, Index, String, Table, delete, insert, select, update

from sendense_db.columns import UtcDateTime, one_of, utc_now
from sendense_db.engine import Database, new_metadata
from sendense_db.requests import requests_table

metadata = new_metadata()

STATES = ("mounting", "mounted", "unmounting", "failed")

restore_mounts = Table(
    "restore_mounts",
    metadata,
    Column("mount_id", String(64), primary_key=True),
    Column("backup_id", String(191), nullable=False),
    Column("request_id", String(64)),
    Column("state", String(16), nullable=False),
    Column("backend", String(16), nullable=False),
    Column("mount_path", String(1024), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    one_of("state", *STATES),
    one_of("backend", "kernel", "guestfs"),
    Index(None, "backup_id"),
)

requests = requests_table(metadata, "restore")


@dataclass(frozen=True, slots=True)
class MountRow:
    """A row: a mount that exists, or whose lease is still to be given back."""

    mount_id: str
    backup_id: str
    request_id: str
    state: str
    backend: str
    mount_path: str
    created_at: datetime


class MountStore:
    """Reads and writes `restore_mounts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, row: MountRow) -> None:
        """Adds a mount that is about to be made."""
        async with self._database.begin() as connection:
            await connection.execute(
                insert(restore_mounts).values(
                    mount_id=row.mount_id,
                    backup_id=row.backup_id,
                    request_id=row.request_id or None,
                    state=row.state,
                    backend=row.backend,
                    mount_path=row.mount_path,
                    created_at=row.created_at,
                    updated_at=utc_now(),
                )
            )

    async def set_state(self, mount_id: str, state: str) -> None:
        """Notes a mount's new state; no error when it is not there."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(restore_mounts)
                .where(restore_mounts.c.mount_id == mount_id)
                .values(state=state, updated_at=utc_now())
            )

    async def remove(self, mount_id: str) -> None:
        """Forgets a mount that is undone and whose lease was given back."""
        async with self._database.begin() as connection:
            await connection.execute(delete(restore_mounts).where(restore_mounts.c.mount_id == mount_id))

    async def all(self) -> list[MountRow]:
        """Returns all rows, oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(restore_mounts).order_by(restore_mounts.c.created_at))
            return [
                MountRow(
                    mount_id=row.mount_id,
                    backup_id=row.backup_id,
                    request_id=row.request_id or "",
                    state=row.state,
                    backend=row.backend,
                    mount_path=row.mount_path,
                    created_at=row.created_at,
                )
                for row in rows
            ]
