"""Between the service's objects and the messages of sendense.restore.v1."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.restore.v1 import disk_pb2, restore_pb2
from sendense_restore.disk_exports import DiskExport
from sendense_restore.entries import Entry
from sendense_restore.listing import Page
from sendense_restore.mount import Mount
from sendense_restore.names import escape
from sendense_restore.paths import GuestPath
from sendense_restore.search import Found
from sendense_restore.served_points import ServedPoint
from sendense_restore.volume import Volume

_SECOND_NS = 1_000_000_000
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, which a Timestamp can hold; a guest's clock may have been anywhere."""


def mount_message(mount: Mount) -> restore_pb2.Mount:
    """Returns the message of a mount."""
    message = restore_pb2.Mount(
        mount_id=mount.mount_id,
        mount_path=str(mount.place.root),
        backup_id=mount.backup_id,
        state=mount.state,
        backend=mount.wish.backend,
    )
    message.created_at.FromDatetime(mount.created_at)
    message.expires_at.FromDatetime(mount.expires_at)
    if mount.tree is not None:
        message.volumes.extend(_volume_message(volume) for volume in mount.tree.volumes)
        message.operating_system = mount.tree.operating_system
        message.backend = mount.tree.backend
        message.backend_reason = mount.tree.backend_reason
        message.notes.extend(mount.tree.notes)
    if mount.error is not None:
        message.error_reason = mount.error.reason
        message.error_message = mount.error.message
    return message


def _volume_message(volume: Volume) -> restore_pb2.Volume:
    return restore_pb2.Volume(
        name=volume.name,
        disk_id=volume.disk_id,
        partition=volume.partition,
        file_system=volume.file_system,
        label=volume.label,
        uuid=volume.uuid,
        size_bytes=volume.size_bytes,
        guest_path=volume.guest_path,
        error=volume.error,
        device=volume.device,
    )


def page_message(path: GuestPath, page: Page) -> restore_pb2.ListFilesResponse:
    """Returns the message of a page of a directory."""
    return restore_pb2.ListFilesResponse(
        path=path.display,
        entries=[entry_message(entry) for entry in page.entries],
        next_page_token=page.next_token,
    )


def search_message(found: Found) -> restore_pb2.SearchFilesResponse:
    """Returns the message of a search."""
    entries = [entry_message(entry, path) for entry, path in found.entries]
    return restore_pb2.SearchFilesResponse(entries=entries, truncated=found.truncated, examined=found.examined)


def entry_message(entry: Entry, path: str = "") -> restore_pb2.FileEntry:
    """Returns the message of a file."""
    return restore_pb2.FileEntry(
        name=escape(entry.name),
        type=entry.kind,
        size_bytes=entry.size_bytes,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        modified_at=_timestamp(entry.modified_ns),
        link_target=escape(entry.link_target),
        raw_name=entry.name,
        accessed_at=_timestamp(entry.accessed_ns),
        changed_at=_timestamp(entry.changed_ns),
        allocated_bytes=entry.allocated_bytes,
        links=entry.links,
        path=path,
    )


def disk_export_message(export: DiskExport) -> disk_pb2.DiskExport:
    """Returns the message of a disk export."""
    message = disk_pb2.DiskExport(
        export_id=export.export_id,
        backup_id=export.backup_id,
        disk_id=export.disk.disk_id,
        format=export.fmt,
        state=export.state,
        percent=export.percent,
        virtual_size_bytes=export.disk.size_bytes,
        file_size_bytes=export.file_size_bytes,
    )
    message.created_at.FromDatetime(export.created_at)
    message.expires_at.FromDatetime(export.expires_at)
    if export.error is not None:
        message.error_reason = export.error.reason
        message.error_message = export.error.message
    return message


def served_message(served: ServedPoint) -> disk_pb2.ServedPoint:
    """Returns the message of an offered point."""
    disks = [
        disk_pb2.ServedDisk(
            disk_id=disk.disk_id,
            export_name=disk.export_name,
            socket_path=disk.socket_path,
            uri=disk.uri,
            size_bytes=disk.size_bytes,
        )
        for disk in served.disks
    ]
    message = disk_pb2.ServedPoint(served_id=served.served_id, backup_id=served.backup_id, disks=disks)
    message.created_at.FromDatetime(served.created_at)
    message.expires_at.FromDatetime(served.expires_at)
    return message


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, rest = divmod(nanoseconds, _SECOND_NS)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        seconds, rest = min(max(seconds, _FIRST_SECOND), _LAST_SECOND), 0
    return Timestamp(seconds=seconds, nanos=rest)
