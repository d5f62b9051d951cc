"""Export names by the spec's rule: `backup-{vmContextID}-disk{diskID}-{full|incr}-{YYYYMMDDThhmmss}`.

What always holds: at most 63 bytes; different inputs give different names, since a context id that must be cut, or
that holds characters a name cannot, leaves a 60-bit hash of the whole id behind its readable part (`label.hash`), and
one that only looks like such a form is hashed as well; a name can be parsed back.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

MAX_NAME_BYTES: Final = 63
MAX_DISK_ID: Final = 9999

BackupType = Literal["full", "incr"]

_TIME = "%Y%m%dT%H%M%S"
_HASH_CHARACTERS = 12
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_HASHED = re.compile(r"(?P<label>.*)\.(?P<hash>[a-z2-7]{12})")
_NAME = re.compile(
    r"backup-(?P<context>.+)-disk(?P<disk>0|[1-9][0-9]{0,3})-(?P<type>full|incr)-(?P<time>[0-9]{8}T[0-9]{6})"
)


@dataclass(frozen=True, slots=True)
class BackupExportName:
    """What a backup's export name says.

    Attributes:
        context: The context's part of the name: the whole id, or `label.hash`.
        is_hashed: Whether it is the latter; then `names_context` tells whose it is.
        disk_id: The disk.
        backup_type: `full` or `incr`.
        timestamp: UTC, whole seconds.
    """

    context: str
    is_hashed: bool
    disk_id: int
    backup_type: BackupType
    timestamp: datetime

    def names_context(self, vm_context_id: str) -> bool:
        """Whether the name was built for this context id."""
        if not self.is_hashed:
            return self.context == vm_context_id
        return self.context.endswith("." + _hash(vm_context_id))


def build_backup_export_name(vm_context_id: str, disk_id: int, backup_type: BackupType, timestamp: datetime) -> str:
    """Builds the name of a backup's export.

    Args:
        vm_context_id: Any non-empty text; taken as it is where it fits.
        disk_id: From 0 to 9999.
        backup_type: `full` or `incr`.
        timestamp: With a time zone; whole seconds of it are used, in UTC.

    Raises:
        ValueError: An argument is out of range.
    """
    if not vm_context_id:
        raise ValueError("an export's name needs a context id")
    if not 0 <= disk_id <= MAX_DISK_ID:
        raise ValueError(f"disk id {disk_id} is not from 0 to {MAX_DISK_ID}")
    if timestamp.tzinfo is None:
        raise ValueError("a time without a zone cannot stand in a name")
    moment = timestamp.astimezone(UTC)
    # strftime's %Y has no leading zeroes before the year 1000 on Linux
    tail = f"-disk{disk_id}-{backup_type}-{moment.year:04}{moment.strftime('%m%dT%H%M%S')}"
    room = MAX_NAME_BYTES - len("backup-") - len(tail)
    return f"backup-{_context_part(vm_context_id, room)}{tail}"


def parse_backup_export_name(name: str) -> BackupExportName | None:
    """Reads a name back; None when it is not one of a backup (such as `migration-vm-…`)."""
    matched = _NAME.fullmatch(name)
    if matched is None or len(name.encode()) > MAX_NAME_BYTES:
        return None
    try:
        moment = datetime.strptime(matched["time"], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    context = matched["context"]
    return BackupExportName(
        context=context,
        is_hashed=_HASHED.fullmatch(context) is not None,
        disk_id=int(matched["disk"]),
        backup_type="full" if matched["type"] == "full" else "incr",
        timestamp=moment,
    )


def _context_part(vm_context_id: str, room: int) -> str:
    is_plain = _PLAIN.fullmatch(vm_context_id) is not None
    if is_plain and len(vm_context_id) <= room and _HASHED.fullmatch(vm_context_id) is None:
        return vm_context_id
    label = _NOT_PLAIN.sub("-", vm_context_id)[: room - 1 - _HASH_CHARACTERS]
    return f"{label}.{_hash(vm_context_id)}"


def _hash(vm_context_id: str) -> str:
    digest = hashlib.blake2b(vm_context_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:_HASH_CHARACTERS]
