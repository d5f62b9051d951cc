"""A mounted restore point, and the port of what makes, shares and undoes one; `mounter` is its adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sendense_restore.backend import Disk
from sendense_restore.places import Place
from sendense_restore.volume import Volume


@dataclass(frozen=True)
class Tree:
    """A mounted restore point.

    Attributes:
        root: Directory on the host that is the guest's root.
        volumes: What was found on the disks.
        volume_roots: For each mounted volume's name, its own root directory on the host.
        operating_system: From os-release or the Windows registry; empty when not known.
        lost: Done when the storage below has gone, with what happened.
        backend: `kernel` or `guestfs`.
        backend_reason: Why that one.
        notes: What a person should know, such as that it is slow.
    """

    root: Path
    volumes: tuple[Volume, ...]
    volume_roots: Mapping[str, Path]
    operating_system: str
    lost: asyncio.Future[str]
    backend: str = "kernel"
    backend_reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """How a caller wants a point mounted.

    Attributes:
        backend: `kernel` or `guestfs`; empty leaves the choice to the service.
        passphrases: For encrypted volumes; kept in memory until it is mounted, never stored.
        disk_ids: Only these disks; empty for all.
        force: Mount a point that is known to be damaged, or doubted.
    """

    backend: str = ""
    passphrases: tuple[str, ...] = ()
    disk_ids: tuple[int, ...] = ()
    force: bool = False

    def __repr__(self) -> str:
        return f"Wish(backend={self.backend!r}, disk_ids={self.disk_ids}, passphrases=<{len(self.passphrases)}>)"


class Mounter(Protocol):
    """Makes trees out of disks. What it makes lies in the mount's place, and is found there after a crash."""

    async def mount(self, backup_id: str, disks: Sequence[Disk], place: Place, wish: Wish) -> Tree:
        """Mounts disks of a point.

        Raises:
            MountFailed: It cannot be done; nothing is left.
            NoFileSystem: There is nothing to mount; nothing is left.
            VolumeLocked: All there is is encrypted, and no passphrase opens it; nothing is left.
        """

    async def share(self, tree: Tree, place: Place) -> None:
        """Shows a tree at another place's root too.

        Raises:
            MountFailed: It cannot be done; nothing is left.
        """

    async def unshare(self, place: Place) -> None:
        """Takes a tree away from a place's root and leaves whatever else there is.

        Raises:
            TeardownError: Something could not be undone; calling again tries again.
        """

    async def users(self, place: Place) -> list[str]:
        """Returns the processes of this host that use the tree at this place, for people."""

    async def unmount(self, place: Place) -> None:
        """Undoes a mount, or whatever there is of one, with everything it made; users are cut off.

        Raises:
            TeardownError: Something could not be undone; calling again tries again.
        """
