"""In which restore points of a VM a file exists, and when it changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.restore.v1 import restore_pb2
from sendense_client import NotFound
from sendense_ctl import files
from sendense_ctl.connection import Gateway
from sendense_ctl.output import as_json, moment
from sendense_rpc.errors import SendenseError


@dataclass(frozen=True)
class Version:
    """A file in one restore point.

    Attributes:
        backup_id: The restore point.
        state: `new` (it was not in the point before), `changed` (content, by size and time), `attributes` (owner, mode
            or names only), `same`, `absent`, or `unknown` (the point cannot be looked into).
        entry: The file; None where there is none.
        problem: Why the point cannot be looked into.
    """

    backup_id: str
    state: str
    entry: restore_pb2.FileEntry | None = None
    problem: str = ""

    @property
    def modified(self) -> str:
        """When it was last changed, for people."""
        return moment(self.entry.modified_at) if self.entry is not None else "–"

    def as_json(self) -> dict[str, Any]:
        """Returns it as JSON shows it."""
        file = as_json(self.entry) if self.entry is not None else None
        return {"backup_id": self.backup_id, "state": self.state, "file": file, "problem": self.problem}


def history_of(gateway: Gateway, vm_name: str, path: str, limit: int) -> Iterator[Version]:
    """Yields the file in each of the newest restore points, oldest first; each is mounted for a moment."""
    before: restore_pb2.FileEntry | None = None
    for backup_id in reversed(_completed(gateway, vm_name, limit)):
        try:
            entry = _look(gateway, backup_id, path)
        except SendenseError as error:
            yield Version(backup_id, "unknown", problem=f"{error.message} [{error.reason}]")
            continue
        yield Version(backup_id, _compared(before, entry), entry)
        before = entry


def _look(gateway: Gateway, backup_id: str, path: str) -> restore_pb2.FileEntry | None:
    mounted = files.mount(gateway, restore_pb2.MountBackupRequest(backup_id=backup_id))
    try:
        return files.look(gateway, mounted.mount_id, path)
    except NotFound:
        return None
    finally:
        files.unmount(gateway, mounted.mount_id)


def _compared(before: restore_pb2.FileEntry | None, now: restore_pb2.FileEntry | None) -> str:
    if now is None:
        return "absent"
    if before is None:
        return "new"
    if (before.type, before.size_bytes, before.modified_at) != (now.type, now.size_bytes, now.modified_at):
        return "changed"
    return "same" if before.changed_at == now.changed_at else "attributes"


def _completed(gateway: Gateway, vm_name: str, limit: int) -> list[str]:
    """Ids of completed backups, newest first."""
    found: list[str] = []
    token = ""
    with gateway.channel() as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        while True:
            request = backup_pb2.ListBackupsRequest(
                vm_name=vm_name, status="completed", page_size=min(limit, 1000), page_token=token
            )
            page = gateway.call(stub.ListBackups, request)
            found += [backup.backup_id for backup in page.backups]
            token = page.next_page_token
            if not token or len(found) >= limit:
                return found[:limit]
