"""The guest's file systems during one operation: mounted over throw-away overlays, kept all at once or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sendense_lab import volumes, writes
from sendense_lab.errors import InvalidRequestError
from sendense_lab.machine import Machine


class GuestSession:
    """The guest's disks during one operation: each is exported, and mounted, when first asked for."""

    def __init__(self, machine: Machine, run_dir: Path, stack: contextlib.ExitStack) -> None:
        self._machine = machine
        self._run_dir = run_dir
        self._stack = stack
        self._files: dict[int, Path] = {}
        self._mounts: dict[int, Path] = {}
        self._writable: set[int] = set()

    @property
    def touched(self) -> list[int]:
        """Indexes of the disks that have an overlay."""
        return sorted(self._files)

    def file(self, index: int) -> Path:
        """Returns a disk as a raw, writable file."""
        if index not in self._files:
            machine, disk = self._machine, self._machine.record.disks[index]
            overlay = machine.overlay(disk)
            overlay.create(disk.capacity)
            place = self._run_dir / f"disk{index}"
            place.mkdir()
            graph = overlay.blockdev(machine.directory, machine.record.chain(disk.top), place)
            self._files[index] = self._stack.enter_context(volumes.exported(graph, place))
        return self._files[index]

    def root(self, index: int, *, writable: bool) -> Path:
        """Returns where a disk's file system is mounted; a mount that only reads leaves no trace on the disk.

        Raises:
            InvalidRequestError: The disk is blank.
        """
        if index not in self._mounts:
            disk = self._machine.record.disks[index]
            if disk.filesystem is None:
                raise InvalidRequestError(f"{disk.label} of {self._machine.record.name} has no file system")
            device = self._stack.enter_context(volumes.loop_device(self.file(index), disk.capacity))
            at = self._run_dir / "mnt" / str(index)
            at.mkdir(parents=True)
            self._mounts[index] = self._stack.enter_context(
                volumes.mounted(device, disk.filesystem, at, read_only=not writable)
            )
        elif writable and index not in self._writable:
            volumes.remount_writable(self._mounts[index])
        if writable:
            self._writable.add(index)
        return self._mounts[index]


@contextlib.contextmanager
def guest_session(machine: Machine, *, read_only: bool = False) -> Iterator[GuestSession]:
    """Lets the guest work on its file systems.

    All or nothing: when the body ends well, everything written is noted in the change logs and brought into the
    disks' tops; when it raises, the disks stay as they were. With `read_only` nothing is kept.

    Raises:
        InvalidRequestError: The VM is powered off, and the guest wants to write.
    """
    with machine.lock:
        if not read_only:
            machine.require_running()
        run_dir = Path(tempfile.mkdtemp(prefix=f"{machine.record.moref}-", dir=machine.store.run))
        try:
            with contextlib.ExitStack() as stack:
                session = GuestSession(machine, run_dir, stack)
                yield session
            if not read_only:
                writes.keep_overlays(machine, session.touched)
        finally:
            shutil.rmtree(run_dir)
            for disk in machine.record.disks:
                if disk.pending_overlay is None:
                    machine.overlay(disk).remove()
