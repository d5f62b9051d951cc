"""The port behind which the volumes of a restore point become directories; two adapters pass one contract suite.

`kernel_backend` lets the host's kernel read the guest's file systems; `guestfs_backend` lets a micro-VM do it, which
also opens LVM, LUKS and software RAID. What is the same for both (overlays, probing, one tree out of many volumes)
is `mounter`'s.
"""

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


@dataclass(frozen=True, slots=True)
class Opened:
    """What a back end made of a point's volumes.

    Attributes:
        volumes: All of them, with an error where one is not mounted; those that are made of others come after them.
        roots: For each mounted volume's name, its own root directory on the host.
        notes: What a person should know, such as that it is slow.
        lost: Done when what serves them has ended, with what happened; None where nothing can.
    """

    volumes: tuple[Volume, ...]
    roots: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    lost: asyncio.Future[str] | None = None


class Backend(Protocol):
    """Mounts volumes read-only. What it makes lies in the mount's place, and is found there after a crash."""

    @property
    def name(self) -> str:
        """`kernel` or `guestfs`."""

    async def open(self, volumes: Sequence[Volume], place: Place, passphrases: Sequence[str]) -> Opened:
        """Mounts what can be mounted of the volumes, whose disks are exported as `place.image(disk_id)`.

        Args:
            volumes: What was found on the disks.
            place: The mount's paths; its directories exist.
            passphrases: For encrypted volumes; never stored, logged or shown to other users of the host.

        Raises:
            BackendError: It cannot be done at all. `close` is called in any case.
        """

    async def close(self, place: Place) -> None:
        """Ends what `open` made, or whatever there is of it; no error when there is nothing.

        The directories in `Opened.roots` may still be mounted; nobody uses them any more.

        Raises:
            ProgramError: Something could not be undone; calling again tries again.
            OSError: As well.
        """


class BackendError(Exception):
    """A back end cannot work at all on this machine or with these disks.

    Attributes:
        problem: What is in the way.
        help: What the caller may do.
    """

    def __init__(self, problem: str, help_: str = "") -> None:
        self.problem = problem
        self.help = help_
        super().__init__(problem)
