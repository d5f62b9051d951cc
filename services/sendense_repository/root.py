"""A repository's root directory: its marker, its room, and the proof that it can keep backups.

Nothing is ever written into a root whose marker is missing or another repository's: an unmounted file system leaves an
empty directory behind, and a backup written there would fill the wrong disk and be lost at the next mount.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from sendense_repository import documents, durable
from sendense_repository.documents import DocumentError
from sendense_repository.errors import RepositoryUnusable
from sendense_repository.layout import MARKER_NAME
from sendense_repository.probing import try_directory

_KIND = "repository"
_ALLOWED_IN_EMPTY = frozenset({"lost+found"})


@dataclass(frozen=True, slots=True)
class Marker:
    """What the marker file says: which repository this is."""

    repository_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Room:
    """Room of a file system in bytes.

    Attributes:
        total: Its size.
        free: What an unprivileged writer may still use.
    """

    total: int
    free: int


def normal_path(root: Path) -> Path:
    """Returns the path without `.`, `..` and doubled slashes; symbolic links stay, they may be the admin's way."""
    return Path(os.path.normpath(root))


def read_marker(root: Path) -> Marker | None:
    """Returns the marker, None when the root has none.

    Raises:
        RepositoryUnusable: The marker cannot be read or understood.
    """
    try:
        document = documents.read(root / MARKER_NAME, _KIND)
        return Marker(str(document["repository_id"]), str(document["name"]))
    except FileNotFoundError:
        return None
    except (DocumentError, KeyError) as error:
        raise RepositoryUnusable(root, f"its marker is damaged or newer: {error}") from error
    except OSError as error:
        raise RepositoryUnusable(root, f"its marker cannot be read: {error.strerror}") from error


def require_marker(root: Path, repository_id: str) -> None:
    """Raises RepositoryUnusable unless the root is there and is this repository's."""
    marker = read_marker(root)
    if marker is None:
        raise RepositoryUnusable(root, f"there is no marker {MARKER_NAME} in it: probably it is not mounted")
    if marker.repository_id != repository_id:
        raise RepositoryUnusable(root, f"it belongs to repository {marker.repository_id} ('{marker.name}')")


def write_marker(root: Path, name: str) -> Marker:
    """Marks an empty directory as a new repository.

    Raises:
        RepositoryUnusable: It is not empty, or cannot be written.
    """
    marker = Marker(str(uuid.uuid4()), name)
    content, _ = documents.encode(_KIND, {"repository_id": marker.repository_id, "name": name})
    try:
        if {entry.name for entry in root.iterdir()} - _ALLOWED_IN_EMPTY:
            raise RepositoryUnusable(root, "it is not empty and has no marker of ours", help="Name an empty directory.")
        durable.write_new(root / MARKER_NAME, content, mode=0o444)
    except OSError as error:
        raise RepositoryUnusable(root, f"its marker cannot be written: {error.strerror}") from error
    return marker


def room(root: Path) -> Room:
    """Returns the room of the root's file system."""
    status = os.statvfs(root)
    return Room(total=status.f_blocks * status.f_frsize, free=status.f_bavail * status.f_frsize)


def probe(root: Path, reserve_bytes: int) -> Room:
    """Proves that the directory can keep backups: sync, names that are never replaced, locks, clock, and some room.

    Leaves nothing behind.

    Raises:
        RepositoryUnusable: What it lacks.
    """
    if not root.is_absolute() or not root.is_dir():
        raise RepositoryUnusable(root, "it is no existing directory", help="Create the directory first.")
    for trial in try_directory(root):
        if not trial.passed:
            raise RepositoryUnusable(root, f"{trial.name}: {trial.finding}")
    try:
        available = room(root)
    except OSError as error:
        raise RepositoryUnusable(root, f"{error.strerror or error}") from error
    if available.free <= reserve_bytes:
        finding = f"{available.free} bytes are free, {reserve_bytes} are kept as a reserve"
        raise RepositoryUnusable(root, finding, help="Make room, or choose another file system.")
    return available
