"""Export names by the spec's rule: `backup-{vmContextID}-disk{diskID}-{full|incr}-{YYYYMMDDThhmmss}`.

What always holds: at most 63 ASCII letters, digits, `.`, `_` and `-`; different inputs give different names, since a
context id that must be cut, or that holds characters a name cannot, leaves a 60-bit hash of the whole id behind its
readable part (`label.hash`), and one that only looks like such a form is hashed as well; a name can be parsed back.

    export_name("ctx-pgtest2-20251005-120000", 0, "full", moment)
                                     -> "backup-ctx-pgtest2-20251005-120000-disk0-full-20251005T120000"
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sendense_naming.moments import utc

MAX_EXPORT_NAME: Final = 63
"""Longest NBD export name; the spec asks for fewer than 64 characters."""

MAX_DISK_ID: Final = 9999

EXPORT_TYPES: Final = {"full": "full", "incremental": "incr"}
"""How a backup type is spelled in an export name."""

_BACKUP_TYPES = {spelled: backup_type for backup_type, spelled in EXPORT_TYPES.items()}
_TIME = "%Y%m%dT%H%M%S"
_HASH_CHARACTERS = 12
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_HASHED = re.compile(r"(?P<label>.*)\.(?P<hash>[a-z2-7]{12})")
_NAME = re.compile(
    r"backup-(?P<context>[A-Za-z0-9._-]+)"
    r"-disk(?P<disk>0|[1-9][0-9]{0,3})-(?P<type>full|incr)-(?P<time>[0-9]{8}T[0-9]{6})"
)


@dataclass(frozen=True, slots=True)
class ExportName:
    """What a backup's export name says.

    Attributes:
        context: The context's part of the name: the whole id, or `label.hash`.
        is_hashed: Whether it is the latter; then `names_context` tells whose it is.
        disk_id: The disk.
        backup_type: `full` or `incremental`.
        moment: UTC, whole seconds.
    """

    context: str
    is_hashed: bool
    disk_id: int
    backup_type: str
    moment: datetime

    def names_context(self, vm_context_id: str) -> bool:
        """Whether the name was made for this context id."""
        if not self.is_hashed:
            return self.context == vm_context_id
        return self.context.endswith("." + _hash(vm_context_id))


def export_name(context_id: str, disk_id: int, backup_type: str, moment: datetime) -> str:
    """Returns the name of a backup's export, at most 63 characters.

    Args:
        context_id: The VM's context in the catalogue; any text that is not empty, taken as it is where it fits.
        disk_id: Number allotted to the disk, from 0 to 9999.
        backup_type: `full` or `incremental`.
        moment: When the export is made, with a time zone; whole seconds count. A name is never used twice: who finds
            it taken asks for the next second's.

    Raises:
        ValueError: An argument is out of range.
    """
    if not context_id:
        raise ValueError("an export's name needs a context id")
    if disk_id < 0:
        raise ValueError(f"disk {disk_id} has no number yet")
    if disk_id > MAX_DISK_ID:
        raise ValueError(f"disk {disk_id} is above {MAX_DISK_ID}")
    if backup_type not in EXPORT_TYPES:
        raise ValueError(f"a backup is full or incremental, not {backup_type!r}")
    at = utc(moment)
    # strftime's %Y has no leading zeroes before the year 1000 on Linux
    tail = f"-disk{disk_id}-{EXPORT_TYPES[backup_type]}-{at.year:04}{at:%m%dT%H%M%S}"
    room = MAX_EXPORT_NAME - len("backup-") - len(tail)
    return f"backup-{_context_part(context_id, room)}{tail}"


def parse_export_name(name: str) -> ExportName | None:
    """Reads a name back; None when it is not one of a backup (such as `migration-vm-…`)."""
    matched = _NAME.fullmatch(name)
    if matched is None or len(name) > MAX_EXPORT_NAME:
        return None
    try:
        moment = datetime.strptime(matched["time"], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    context = matched["context"]
    return ExportName(
        context=context,
        is_hashed=_HASHED.fullmatch(context) is not None,
        disk_id=int(matched["disk"]),
        backup_type=_BACKUP_TYPES[matched["type"]],
        moment=moment,
    )


def _context_part(context_id: str, room: int) -> str:
    is_plain = _PLAIN.fullmatch(context_id) is not None
    if is_plain and len(context_id) <= room and _HASHED.fullmatch(context_id) is None:
        return context_id
    label = _NOT_PLAIN.sub("-", context_id)[: room - 1 - _HASH_CHARACTERS]
    return f"{label}.{_hash(context_id)}"


def _hash(context_id: str) -> str:
    digest = hashlib.blake2b(context_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:_HASH_CHARACTERS]
