"""Writes the rows of backups that were made under an earlier catalogue, or by another installation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.model import COMPLETED, FULL, INCREMENTAL, Layer, Repository, StoredPoint
from sendense_backup.store.tables import contexts, disks, jobs
from sendense_db.columns import utc_now
from sendense_db.engine import Database

UNKNOWN_VCENTER = ""
"""Storage does not say which vCenter a VM was of: the first backup of the VM fills it in."""


class Imports:
    """Imported backups."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, points: Sequence[StoredPoint], repository: Repository) -> dict[str, str]:
        """Lists points of one VM as completed backups; those that are listed already stay as they are.

        Args:
            points: Oldest first.
            repository: Where they lie.

        Returns:
            For each backup id the VM context that it is listed under.
        """
        placed: dict[str, str] = {}
        async with self._database.begin() as connection:
            for point in points:
                placed[point.backup_id] = await _put_context(connection, point)
                await _put_job(connection, point, repository, placed[point.backup_id])
        return placed


async def _put_context(connection: AsyncConnection, point: StoredPoint) -> str:
    """Returns the point's VM context, or else another of its VM, made when there is none."""
    wanted = point.vm_context_id
    known = (
        await connection.execute(
            select(contexts.c.context_id, contexts.c.vm_uuid).where(
                (contexts.c.context_id == wanted) | (contexts.c.vm_uuid == point.vm_uuid)
            )
        )
    ).all()
    own = sorted((row.context_id for row in known if row.vm_uuid == point.vm_uuid), key=lambda each: each != wanted)
    if own:
        await connection.execute(update(contexts).where(contexts.c.context_id == own[0]).values(deleted_at=None))
        return str(own[0])
    taken = any(row.context_id == wanted for row in known)
    context_id = f"{wanted[:154]}-{point.vm_uuid}" if taken else wanted
    now = utc_now()
    await connection.execute(
        insert(contexts).values(
            context_id=context_id,
            vm_name=point.vm_name,
            vm_uuid=point.vm_uuid,
            vcenter_uuid=UNKNOWN_VCENTER,
            agent_id="",
            created_at=now,
            updated_at=now,
        )
    )
    return context_id


async def _put_job(connection: AsyncConnection, point: StoredPoint, repository: Repository, context_id: str) -> None:
    known = (
        await connection.execute(select(jobs.c.status, jobs.c.deleted_at).where(jobs.c.id == point.backup_id))
    ).one_or_none()
    if known is not None and known.status == COMPLETED and known.deleted_at is None:
        return
    if known is not None:
        await connection.execute(delete(disks).where(disks.c.backup_id == point.backup_id))
        await connection.execute(
            update(jobs)
            .where(jobs.c.id == point.backup_id)
            .values(**await _job_values(connection, point, repository, context_id))
        )
    else:
        values = await _job_values(connection, point, repository, context_id)
        await connection.execute(insert(jobs).values(id=point.backup_id, **values))
    for position, layer in enumerate(point.layers):
        await connection.execute(
            insert(disks).values(backup_id=point.backup_id, position=position, **_disk_values(point, position, layer))
        )


async def _job_values(
    connection: AsyncConnection, point: StoredPoint, repository: Repository, context_id: str
) -> dict[str, Any]:
    kind = FULL if all(layer.backup_type == FULL for layer in point.layers) else INCREMENTAL
    copied = sum(point.copied_bytes)
    made = [layer.created_at for layer in point.layers if layer.created_at is not None]
    began = min(made, default=point.committed_at)
    parent = await connection.scalar(select(jobs.c.id).where(jobs.c.id == point.previous_backup_id))
    return {
        "vm_context_id": context_id,
        "vm_name": point.vm_name,
        "backup_type": kind,
        "requested_type": kind,
        "status": COMPLETED,
        "repository_id": repository.repository_id,
        "repository_name": repository.name,
        "repository_type": repository.repository_type,
        "repository_path": f"{repository.path}/{point.vm_uuid}",
        "parent_backup_id": parent if kind == INCREMENTAL else None,
        "change_id": point.layers[0].change_id if point.layers else "",
        "bytes_transferred": copied,
        "total_bytes": copied,
        "created_at": began,
        "started_at": began,
        "completed_at": point.committed_at,
        "agent_id": "",
        "snapshot_at": point.snapshot_at,
        "hardware_json": point.hardware_json,
        "deleted_at": None,
        "error_message": None,
        "error_reason": None,
    }


def _disk_values(point: StoredPoint, position: int, layer: Layer) -> dict[str, Any]:
    copied = point.copied_bytes[position]
    return {
        "device_key": 0,
        "identity": layer.disk_identity,
        "label": f"disk {layer.disk_id}",
        "disk_id": layer.disk_id,
        "backup_type": layer.backup_type,
        "reason": point.reasons[position],
        "status": COMPLETED,
        "capacity_bytes": layer.virtual_size_bytes,
        "change_id": layer.change_id,
        "parent_layer_id": layer.parent_layer_id,
        "layer_id": layer.layer_id,
        "chain_id": layer.chain_id,
        "path": layer.path,
        "cluster_size_bytes": layer.cluster_size_bytes,
        "changed_bytes": copied,
        "total_bytes": copied,
        "bytes_transferred": copied,
    }
