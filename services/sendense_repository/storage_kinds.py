"""The kinds of storage that a directory can be: what each asks of its root before anything is read or written there.

`local` is a directory of this machine. `nfs` is a directory on a mount of its own: when that is gone, what lies at its
path is the empty mount point on another file system, which must never be written to, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sendense_repository import root as roots
from sendense_repository.errors import InvalidValue, RepositoryUnusable
from sendense_repository.mounts import mount_of

_MACHINES_OWN = Path("/")


class StorageKind(Protocol):
    """What a kind of storage asks of a root directory; both block for the disk."""

    def require_fit(self, root: Path) -> None:
        """Raises RepositoryUnusable unless a directory can become a root of this kind."""

    def require_usable(self, root: Path, repository_id: str) -> None:
        """Raises RepositoryUnusable unless the root is there now and is that repository's."""


class LocalStorage:
    """A directory of this machine."""

    def require_fit(self, root: Path) -> None:
        """Takes any directory."""

    def require_usable(self, root: Path, repository_id: str) -> None:
        """Asks for the marker."""
        roots.require_marker(root, repository_id)


class NfsStorage:
    """A directory on a mounted network file system."""

    def require_fit(self, root: Path) -> None:
        """Asks for a mount."""
        _require_mounted(root)

    def require_usable(self, root: Path, repository_id: str) -> None:
        """Asks for the mount, then for the marker on it."""
        _require_mounted(root)
        roots.require_marker(root, repository_id)


def _require_mounted(root: Path) -> None:
    try:
        mount = mount_of(root)
    except OSError as error:
        raise RepositoryUnusable(root, f"its mount cannot be seen: {error}") from error
    if mount.point == _MACHINES_OWN:
        raise RepositoryUnusable(
            root,
            "nothing is mounted there: it lies on the machine's own file system",
            help="Mount the network file system, or register the directory as `local`.",
        )


_KINDS: Mapping[str, StorageKind] = {"local": LocalStorage(), "nfs": NfsStorage()}

DIRECTORY_TYPES = tuple(_KINDS)
"""Types of repositories that are directories."""


def kind_of(repository_type: str) -> StorageKind:
    """Returns what a type of repository asks of its root.

    Raises:
        InvalidValue: There is no such type.
    """
    kind = _KINDS.get(repository_type)
    if kind is None:
        raise InvalidValue("repository_type", f"'{repository_type}' is none of {', '.join(DIRECTORY_TYPES)}")
    return kind
