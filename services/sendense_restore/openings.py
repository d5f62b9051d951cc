"""Restore points that are open now: the same point asked for twice is opened once and shown at each mount's own root.

What always holds: an opening lives as long as a mount has it, and is undone after the last has let go. A point that was
unlocked with a passphrase is shared with nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sendense_restore.backend import Disk
from sendense_restore.places import Place
from sendense_restore.tree import Mounter, Tree, Wish

Key = tuple[str, str, tuple[int, ...]]


@dataclass(eq=False)
class Opening:
    """An open point, or one that is being opened.

    Attributes:
        place: Where it lies: the place of the mount that asked first.
        key: By which it is found for sharing; None for one that is not shared.
        task: Makes the tree.
        holders: The places at which it is shown.
    """

    place: Place
    key: Key | None
    task: asyncio.Task[Tree]
    holders: set[str] = field(default_factory=set)


class Openings:
    """What is open.

    Args:
        mounter: Opens and undoes.
    """

    def __init__(self, mounter: Mounter) -> None:
        self._mounter = mounter
        self._shared: dict[Key, Opening] = {}

    async def open(self, backup_id: str, disks: Sequence[Disk], place: Place, wish: Wish) -> tuple[Opening, Tree]:
        """Opens a point's disks, or joins the opening that there is, and shows the tree at the place's root.

        Raises:
            SendenseError: As `Mounter.mount`; nothing is left of this caller's part.
        """
        key = None if wish.passphrases else (backup_id, wish.backend, tuple(disk.disk_id for disk in disks))
        opening = self._shared.get(key) if key is not None else None
        if opening is not None and _has_ended(opening):
            opening = None
        if opening is None:
            task = asyncio.create_task(self._mounter.mount(backup_id, disks, place, wish))
            opening = Opening(place, key, task)
            if key is not None:
                self._shared[key] = opening
        opening.holders.add(place.mount_id)
        try:
            # Not awaited itself: who goes away must not end what another waits for.
            tree = await asyncio.shield(opening.task)
            if opening.place is not place:
                await self._mounter.share(tree, place)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._let_go_unshown(opening, place)))
            raise
        return opening, replace(tree, root=place.root)

    async def let_go(self, opening: Opening, place: Place) -> None:
        """Takes the tree away from a place; undoes the opening when nobody else has it.

        Raises:
            TeardownError: Something is left; calling again tries again.
        """
        # Decided before anything is awaited: of two that leave at once, one is the last.
        opening.holders.discard(place.mount_id)
        is_last = not opening.holders
        if is_last:
            self._forget(opening)
        if not is_last or opening.place is not place:
            await self._mounter.unshare(place)
        if is_last:
            await self._mounter.unmount(opening.place)

    async def _let_go_unshown(self, opening: Opening, place: Place) -> None:
        opening.holders.discard(place.mount_id)
        if opening.holders:
            return
        self._forget(opening)
        if not opening.task.done():
            opening.task.cancel()
        await asyncio.wait([opening.task])
        if not opening.task.cancelled() and opening.task.exception() is None:
            await self._mounter.unmount(opening.place)

    def _forget(self, opening: Opening) -> None:
        if opening.key is not None and self._shared.get(opening.key) is opening:
            del self._shared[opening.key]


def _has_ended(opening: Opening) -> bool:
    """Whether its making failed, or what it stands on is gone: nobody else joins it."""
    task = opening.task
    return task.done() and (task.cancelled() or task.exception() is not None or task.result().lost.done())
