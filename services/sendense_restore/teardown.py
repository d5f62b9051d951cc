"""Undoing a mount from what the system shows: kernel mounts, loop devices, daemon, FUSE files, directories.

The same code ends a mount in order, rolls back a half-made one, and cleans up after a crash; each step looks for
what is there and is no error when nothing is. Nothing is deleted while anything is mounted below it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from sendense_qemu.errors import StorageDaemonError
from sendense_qemu.fuse import clear_mountpoint
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_restore import mount_table
from sendense_restore.backend import Backend
from sendense_restore.places import Place
from sendense_restore.programs import ProgramError

log = structlog.get_logger()

_BUSY_SECONDS = 2.0
"""A program that looked in passing (udev, a scanner) gets so long to let go before it is cut off."""
_END_SECONDS = 10.0
_POLL_SECONDS = 0.02


class TeardownError(Exception):
    """Something of a mount could not be undone; what is left is named, and a later try continues.

    Attributes:
        mount_id: The mount.
        problem: What is left.
    """

    def __init__(self, mount_id: str, problem: str) -> None:
        self.mount_id = mount_id
        self.problem = problem
        super().__init__(f"{mount_id}: {problem}")


async def take_away_tree(place: Place) -> None:
    """Unmounts what a place's root shows and removes the directory; volumes and disks stay.

    Raises:
        TeardownError: Something is left.
    """
    try:
        await _unmount_below(place, place.root)
        await asyncio.to_thread(_remove_root, place)
    except (ProgramError, OSError) as error:
        raise TeardownError(place.mount_id, str(error)) from error


async def tear_down(place: Place, daemon: StorageDaemon | None, backends: Sequence[Backend]) -> None:
    """Undoes whatever there is of a mount.

    Args:
        place: The mount's paths.
        daemon: Its storage daemon if this process started it; otherwise the recorded one is looked for.
        backends: Each is asked to end what it made.

    Raises:
        TeardownError: Something is left.
    """
    try:
        await _unmount_below(place, place.root, place.volumes)
        for backend in backends:
            await backend.close(place)
        await _stop_daemon(place, daemon)
        for image in await asyncio.to_thread(_exported_files, place):
            await clear_mountpoint(image)
        await asyncio.to_thread(_remove_directories, place)
    except (ProgramError, StorageDaemonError, OSError) as error:
        raise TeardownError(place.mount_id, str(error)) from error


async def _unmount_below(place: Place, *directories: Path) -> None:
    is_stuck = False
    for entry in await asyncio.to_thread(mount_table.mounts_below, *directories):
        deadline = asyncio.get_running_loop().time() + _BUSY_SECONDS
        while True:
            try:
                # One that did not end in time waits for a micro-VM that does not answer: so would each that follows.
                await mount_table.unmount(entry.path, lazy=is_stuck)
            except ProgramError as error:
                is_stuck = is_stuck or error.status is None
                if not is_stuck and asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                log.warning("unmounting a tree in use", mount_id=place.mount_id, path=str(entry.path), why=str(error))
                await mount_table.unmount(entry.path, lazy=True)
            break


async def _stop_daemon(place: Place, daemon: StorageDaemon | None) -> None:
    if daemon is not None:
        await daemon.stop()
        return
    pid = await asyncio.to_thread(place.recorded_process, "daemon")
    if pid is not None:
        log.warning("ending a storage daemon of an earlier run", mount_id=place.mount_id, pid=pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if await settles(lambda: place.recorded_process("daemon") is None, _END_SECONDS):
                break
        else:
            raise StorageDaemonError("stop", f"process {pid} does not end")
    place.qmp_socket.unlink(missing_ok=True)


async def settles(is_done: Callable[[], bool], seconds: float) -> bool:
    """Waits until something is so, looking in a thread; returns whether it became so in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(is_done):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _exported_files(place: Place) -> list[Path]:
    return [entry.path for entry in mount_table.mounts_below(place.work) if entry.path.parent == place.work]


def _remove_directories(place: Place) -> None:
    left = mount_table.mounts_below(place.root, place.work)
    if left:
        raise OSError(f"still mounted: {', '.join(str(entry.path) for entry in left)}")
    _remove_root(place)
    if place.work.exists():
        shutil.rmtree(place.work)


def _remove_root(place: Place) -> None:
    with contextlib.suppress(FileNotFoundError):
        for directory in place.root.iterdir():  # one per volume, where no root was composed; empty by now
            directory.rmdir()
        place.root.rmdir()
