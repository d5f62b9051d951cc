"""The backup, repository and exports services as this one needs them: adapters of `Points` and of `NbdExports`."""

from __future__ import annotations

from pathlib import Path

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense.repository.v1 import point_pb2, point_pb2_grpc
from sendense_restore.backend import Disk
from sendense_restore.errors import BackupNotCompleted
from sendense_restore.points import RestorePoint
from sendense_rpc.channel import Peer

_LEAVE_SECONDS = 10


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
        in_order = tuple(sorted(disks, key=lambda disk: disk.disk_id))
        return RestorePoint(point.backup_id, in_order, damage, point.integrity.suspicion)


class ExportClients:
    """Asks the exports service over its channel."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = exports_pb2_grpc.ExportServiceStub(peer.channel)

    async def serve(self, name: str, layer: Path, holder: str) -> tuple[str, int]:
        """Serves a layer read-only, see `served_points.NbdExports`."""
        request = exports_pb2.CreateFileExportRequest(
            export_name=name, path=str(layer), format="qcow2", read_only=True, holder=_holder(holder)
        )
        export = await self._peer.call(self._stub.CreateFileExport, request, timeout=60.0)
        return export.socket_path, export.size_bytes

    async def stop(self, name: str, holder: str) -> None:
        """Stops serving, see `served_points.NbdExports`."""
        request = exports_pb2.DeleteExportRequest(
            export_name=name, holder=_holder(holder), wait_seconds=_LEAVE_SECONDS, force=True
        )
        await self._peer.call(self._stub.DeleteExport, request, timeout=_LEAVE_SECONDS + 60.0)

    async def names_of(self, holder: str) -> list[str]:
        """Returns the exports that a holder has, see `served_points.NbdExports`."""
        names: list[str] = []
        token = ""
        while True:
            request = exports_pb2.ListExportsRequest(page_size=1000, page_token=token)
            page = await self._peer.call(self._stub.ListExports, request)
            names += [export.export_name for export in page.exports if export.holder == holder]
            token = page.next_page_token
            if not token:
                return names


def _holder(holder: str) -> exports_pb2.Holder:
    return exports_pb2.Holder(job_id=holder, attempt=1)
