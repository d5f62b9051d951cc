"""Mounts a restore point: overlays exported as raw files, probed, opened by a back end, bound into one tree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from sendense_qemu.errors import QemuError
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_restore import mount_table, room
from sendense_restore.backend import Backend, BackendError, Disk, Opened
from sendense_restore.choice import Policy, check_wish, choose
from sendense_restore.composition import compose, read_operating_system
from sendense_restore.concurrency import all_or_nothing
from sendense_restore.errors import MountFailed, NoFileSystem, NoRoom, VolumeLocked
from sendense_restore.exported_disks import export_disks
from sendense_restore.holders import holders
from sendense_restore.places import Place
from sendense_restore.probe import probe_disk
from sendense_restore.programs import ProgramError
from sendense_restore.teardown import TeardownError, take_away_tree, tear_down
from sendense_restore.tree import Tree, Wish
from sendense_restore.volume import Volume
from sendense_restore.windows import read_product_name

log = structlog.get_logger()


class PointMounter:
    """The adapter of `tree.Mounter` for this host.

    Args:
        backends: The back ends.
        policy: Which of them the administrator allows.
    """

    def __init__(self, backends: Sequence[Backend], policy: Policy) -> None:
        self._backends = {backend.name: backend for backend in backends}
        self._policy: Policy = policy
        self._daemons: dict[str, StorageDaemon] = {}

    async def mount(self, backup_id: str, disks: Sequence[Disk], place: Place, wish: Wish) -> Tree:
        """Mounts disks of a point, see `tree.Mounter`."""
        check_wish(wish, self._policy)
        await asyncio.to_thread(room.require, place.work.parent)
        try:
            return await self._mount(backup_id, disks, place, wish)
        except BaseException as error:
            # Also on cancellation: nothing half-made stays.
            await asyncio.shield(asyncio.ensure_future(self._roll_back(place)))
            if isinstance(error, Exception) and room.is_out(error):
                directory = place.work.parent
                raise NoRoom(directory, room.RESERVE, room.free(directory)) from error
            if isinstance(error, BackendError):
                raise MountFailed(backup_id, error.problem, help=error.help) from error
            if isinstance(error, QemuError | ProgramError | OSError):
                raise MountFailed(backup_id, str(error)) from error
            raise

    async def _roll_back(self, place: Place) -> None:
        try:
            await self.unmount(place)
        except TeardownError:
            log.exception("a failed mount is not undone; the next start of the service tries again")

    async def _mount(self, backup_id: str, disks: Sequence[Disk], place: Place, wish: Wish) -> Tree:
        await asyncio.to_thread(place.make)

        def started(daemon: StorageDaemon) -> None:
            self._daemons[place.mount_id] = daemon

        await export_disks(disks, place, started)
        probed = await all_or_nothing(_probe(disk.disk_id, place.image(disk.disk_id)) for disk in disks)
        found = [volume for volumes in probed for volume in volumes]
        choice = await choose(found, wish, self._policy)
        opened = await self._backends[choice.backend].open(found, place, wish.passphrases)
        if not opened.roots:
            raise _nothing_mounted(backup_id, opened.volumes, wish)
        volumes = await compose(place.root, opened.volumes, opened.roots)
        return Tree(
            root=place.root,
            volumes=tuple(volumes),
            volume_roots=opened.roots,
            operating_system=await asyncio.to_thread(_operating_system, place.root, opened),
            lost=_first_of(self._daemons[place.mount_id].gone, opened),
            backend=choice.backend,
            backend_reason=choice.reason,
            notes=opened.notes,
        )

    async def share(self, tree: Tree, place: Place) -> None:
        """Shows a tree at another place's root too, see `tree.Mounter`."""
        try:
            await asyncio.to_thread(place.root.mkdir, mode=0o700)
            await mount_table.bind(tree.root, place.root, recursive=True)
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(take_away_tree(place)))
            if isinstance(error, ProgramError | OSError):
                raise MountFailed(place.mount_id, str(error)) from error
            raise

    async def unshare(self, place: Place) -> None:
        """Takes a tree away from a place's root, see `tree.Mounter`."""
        await take_away_tree(place)

    async def users(self, place: Place) -> list[str]:
        """Returns the processes of this host that use the mount."""
        return await asyncio.to_thread(holders, [place.root, place.volumes])

    async def unmount(self, place: Place) -> None:
        """Undoes a mount or what there is of one, see `tree.Mounter`."""
        await tear_down(place, self._daemons.get(place.mount_id), list(self._backends.values()))
        self._daemons.pop(place.mount_id, None)


def _operating_system(root: Path, opened: Opened) -> str:
    """From os-release in the composed root, else from the registry of the first Windows that there is."""
    found = read_operating_system(root)
    systems = (read_product_name(directory) for directory in opened.roots.values())
    return found or next((name for name in systems if name), "")


def _nothing_mounted(backup_id: str, volumes: Sequence[Volume], wish: Wish) -> NoFileSystem | VolumeLocked:
    findings = [f"{volume.name}: {volume.error}" for volume in volumes]
    locked = [volume.name for volume in volumes if volume.file_system == "crypto_LUKS"]
    if locked:
        return VolumeLocked(backup_id, locked, tried=bool(wish.passphrases))
    return NoFileSystem(backup_id, findings)


def _first_of(daemon: asyncio.Future[str], opened: Opened) -> asyncio.Future[str]:
    """Done as soon as either of those on which a tree stands has ended."""
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(ended: asyncio.Future[str]) -> None:
        if not lost.done() and not ended.cancelled():
            lost.set_result(ended.result())

    daemon.add_done_callback(tell)
    if opened.lost is not None:
        opened.lost.add_done_callback(tell)
    return lost


async def _probe(disk_id: int, image: Path) -> list[Volume]:
    status = await asyncio.to_thread(image.stat)
    return await probe_disk(disk_id, image, status.st_size)
