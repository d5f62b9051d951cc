"""The backup and repository services as this one needs them: the adapter of the port `points.Points`."""

from __future__ import annotations

from pathlib import Path

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.repository.v1 import point_pb2, point_pb2_grpc
from sendense_restore.backend import Disk
from sendense_restore.errors import BackupNotCompleted
from sendense_restore.points import RestorePoint
from sendense_rpc.channel import Peer


class PointClients:
    """Asks the two services over their channels."""

    def __init__(self, backup: Peer, repository: Peer) -> None:
        self._backup = backup
        self._repository = repository
        self._backups = backup_pb2_grpc.BackupServiceStub(backup.channel)
        self._points = point_pb2_grpc.PointServiceStub(repository.channel)

    async def resolve(self, backup_id: str) -> str:
        """Returns the whole id of a completed backup, see `points.Points`."""
        backup = await self._backup.call(self._backups.GetBackup, backup_pb2.GetBackupRequest(backup_id=backup_id))
        if backup.status != "completed":
            raise BackupNotCompleted(backup.backup_id, backup.status)
        return backup.backup_id

    async def lease(self, backup_id: str, holder: str, seconds: int) -> None:
        """Takes or renews a lease, see `points.Points`."""
        request = point_pb2.LeasePointRequest(backup_id=backup_id, holder=holder, seconds=seconds)
        await self._repository.call(self._points.LeasePoint, request)

    async def release(self, backup_id: str, holder: str) -> None:
        """Ends a lease, see `points.Points`."""
        request = point_pb2.ReleaseLeaseRequest(backup_id=backup_id, holder=holder)
        await self._repository.call(self._points.ReleaseLease, request, timeout=5.0)

    async def get(self, backup_id: str) -> RestorePoint:
        """Returns a restore point, see `points.Points`."""
        point = await self._repository.call(self._points.GetPoint, point_pb2.GetPointRequest(backup_id=backup_id))
        disks = (Disk(layer.disk_id, Path(layer.path), layer.virtual_size_bytes) for layer in point.layers)
        damage = ""
        if point.integrity.state == "corrupt":
            findings = [f"disk {found.disk_id}: {found.finding or found.part}" for found in point.integrity.damages[:3]]
            damage = "; ".join(findings) or "its last verification found it corrupt"
        return RestorePoint(point.backup_id, tuple(sorted(disks, key=lambda disk: disk.disk_id)), damage)
