"""Which back end mounts a restore point, and why: the kernel where it can open all, else libguestfs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sendense_restore.errors import BackendNotAllowed
from sendense_restore.guestfs_backend import guestfs_missing
from sendense_restore.kernel_backend import kernel_refuses
from sendense_restore.tree import Wish
from sendense_restore.volume import Volume

Policy = Literal["auto", "kernel", "guestfs"]

_HOLDS_NOTHING = frozenset({"", "swap", "BitLocker"})
"""What no back end gets files out of."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The back end's name, and why it was chosen, for people."""

    backend: str
    reason: str


def check_wish(wish: Wish, policy: Policy) -> None:
    """Refuses a back end that the administrator does not allow.

    Raises:
        BackendNotAllowed: Another one is required.
    """
    if policy != "auto" and wish.backend not in ("", policy):
        raise BackendNotAllowed(wish.backend, policy)


async def choose(volumes: Sequence[Volume], wish: Wish, policy: Policy) -> Choice:
    """Chooses the back end for what was found on the disks.

    Raises:
        BackendNotAllowed: The administrator requires another one than the caller.
    """
    check_wish(wish, policy)
    if policy != "auto":
        return Choice(policy, f"the administrator requires {policy}")
    if wish.backend:
        return Choice(wish.backend, "it was asked for")
    for volume in volumes:
        if volume.error or volume.file_system in _HOLDS_NOTHING:
            continue
        if volume.file_system == "crypto_LUKS" and not wish.passphrases:
            continue  # locked for both
        if problem := await kernel_refuses(volume.file_system):
            if missing := guestfs_missing():
                return Choice("kernel", f"{volume.name} is {problem}; guestfs might open it, but {missing}")
            return Choice("guestfs", f"{volume.name} is {problem}")
    return Choice("kernel", "the host's kernel opens every file system that was found")
