"""Names and places in a repository of format 1; docs/repository-format.md is normative."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from sendense_repository.errors import InvalidValue

MARKER_NAME = ".sendense-repository.json"
DISKS_NAME = "disks.json"
POINTS_DIRECTORY = "points"
PARTIAL_SUFFIX = ".partial"
MERGED_SUFFIX = ".merged"
CLUSTER_SIZE = 65536
"""Bytes of a cluster of new layers."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BACKUP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_vm_uuid(vm_uuid: str) -> None:
    """Raises InvalidValue unless it is a lower-case UUID: it becomes a directory's name."""
    if not _UUID.fullmatch(vm_uuid):
        raise InvalidValue("vm_uuid", f"{vm_uuid!r} is no UUID in lower case")


def is_vm_directory(path: Path) -> bool:
    """Tells whether a path is a directory that has a VM's name."""
    return _UUID.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def check_backup_id(backup_id: str) -> None:
    """Raises InvalidValue unless it can be a file's name."""
    if not _BACKUP_ID.fullmatch(backup_id):
        raise InvalidValue("backup_id", f"{backup_id!r} must be letters, digits, '.', '_' and '-', at most 64")


def disk_directory(root: Path, vm_uuid: str, disk_id: int) -> Path:
    """Returns the directory of a disk's layers."""
    return root / vm_uuid / f"disk-{disk_id}"


def points_directory(root: Path, vm_uuid: str) -> Path:
    """Returns the directory of a VM's points files."""
    return root / vm_uuid / POINTS_DIRECTORY


def point_file(root: Path, vm_uuid: str, backup_id: str) -> Path:
    """Returns the file that makes a restore point."""
    return points_directory(root, vm_uuid) / f"{backup_id}.json"


def layer_name(backup_type: str, moment: datetime) -> str:
    """Returns the name of a layer's file when it is sealed."""
    prefix = "full" if backup_type == "full" else "incr"
    return f"{prefix}-{moment.astimezone(UTC):%Y%m%d-%H%M%S}.qcow2"


def free_layer_name(backup_type: str, moment: datetime, taken: frozenset[str]) -> str:
    """Returns the first name from `moment` on, second by second, that is not taken."""
    while (name := layer_name(backup_type, moment)) in taken:
        moment += timedelta(seconds=1)
    return name


@dataclass(frozen=True, slots=True)
class LayerFiles:
    """The files of one layer.

    Attributes:
        sealed: The image when it is sealed.
        partial: The image before that.
        fresh: The image while qemu-img creates it: incomplete, never opened.
        areas: What is to be copied; gone when the layer is sealed.
        journal: What was copied.
        sidecar: Everything that is known of the sealed layer.
        doubt: Why the sealed layer's content may be wrong; most have none.
        merged: The image that is to take the sealed one's place, with the layers below merged into it.
        merged_journal: The journal of that.
        merged_sidecar: The sidecar of that; written last, and only when the others are proven.
    """

    sealed: Path
    partial: Path
    fresh: Path
    areas: Path
    journal: Path
    sidecar: Path
    doubt: Path
    merged: Path
    merged_journal: Path
    merged_sidecar: Path

    @classmethod
    def of(cls, root: Path, relative_path: str) -> LayerFiles:
        """Returns the files of the layer whose sealed image is at `relative_path` below the root."""
        sealed = root / PurePosixPath(relative_path)
        return cls(
            sealed=sealed,
            partial=sealed.with_name(sealed.name + PARTIAL_SUFFIX),
            fresh=sealed.with_name(f".new-{sealed.name}"),
            areas=sealed.with_name(f"{sealed.name}.areas"),
            journal=sealed.with_name(f"{sealed.name}.journal"),
            sidecar=sealed.with_name(f"{sealed.name}.json"),
            doubt=sealed.with_name(f"{sealed.name}.doubt"),
            merged=sealed.with_name(f"{sealed.name}{MERGED_SUFFIX}"),
            merged_journal=sealed.with_name(f"{sealed.name}{MERGED_SUFFIX}.journal"),
            merged_sidecar=sealed.with_name(f"{sealed.name}{MERGED_SUFFIX}.json"),
        )

    @property
    def image(self) -> Path:
        """The image under the name that it has now."""
        return self.partial if self.partial.exists() else self.sealed

    @property
    def directory(self) -> Path:
        """Where all of them lie."""
        return self.sealed.parent

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, the sidecar first: without it the rest is no layer."""
        own = (self.sidecar, self.sealed, self.partial, self.fresh, self.areas, self.journal, self.doubt)
        return (*own, *self.of_merge)

    @property
    def of_merge(self) -> tuple[Path, ...]:
        """What a merge has made beside the layer, the sidecar first: without it the rest is a leftover."""
        return (self.merged_sidecar, self.merged, self.merged_journal)

    def stored_bytes(self) -> int:
        """Returns the bytes that the image takes on disk; 0 when it is not there."""
        return _allocated(self.image)

    def freed_bytes(self) -> int:
        """Returns the bytes that come back when all files are removed."""
        return sum(_allocated(path) for path in self.all)

    def sealed_bytes(self) -> int:
        """Returns the bytes that a sealed layer takes, with journal and sidecar, and without a merge beside it."""
        return sum(_allocated(path) for path in (self.sealed, self.journal, self.sidecar))


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
