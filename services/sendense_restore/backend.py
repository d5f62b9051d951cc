"""The port behind which a restore point's disks become a directory tree; `kernel_backend` is its adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sendense_restore.places import Place
from sendense_restore.volume import Volume


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a restore point.

    Attributes:
        disk_id: Number of the disk.
        layer: Its sealed layer; the layers below are found through its header.
        size_bytes: Virtual size in bytes.
    """

    disk_id: int
    layer: Path
    size_bytes: int


@dataclass(frozen=True)
class Tree:
    """A mounted restore point.

    Attributes:
        root: Directory on the host that is the guest's root.
        volumes: What was found on the disks.
        volume_roots: For each mounted volume's name, its own root directory on the host.
        operating_system: From os-release; empty when not known.
        lost: Done when the storage below has gone, with what happened.
    """

    root: Path
    volumes: tuple[Volume, ...]
    volume_roots: Mapping[str, Path]
    operating_system: str
    lost: asyncio.Future[str]


class Backend(Protocol):
    """Mounts restore points. What it makes lies in the mount's place, and is found there after a crash."""

    @property
    def name(self) -> str:
        """`kernel` or `guestfs`."""

    async def mount(self, backup_id: str, disks: Sequence[Disk], place: Place) -> Tree:
        """Mounts all disks of a point.

        Raises:
            MountFailed: It cannot be done; nothing is left.
            NoFileSystem: There is nothing to mount; nothing is left.
        """

    async def users(self, place: Place) -> list[str]:
        """Returns the processes of this host that use the mount, for people."""

    async def unmount(self, place: Place) -> None:
        """Undoes a mount, or whatever there is of one, with everything it made; users are cut off.

        Raises:
            TeardownError: Something could not be undone; calling again tries again.
        """
