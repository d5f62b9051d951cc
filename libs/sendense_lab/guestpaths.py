"""Paths as the guest of a VM sees them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.guestdisks import GuestSession
from sendense_lab.machine import Machine

MAX_LINKS = 40


class GuestPaths:
    """Resolves paths as the guest sees them: its fstab says which disk holds what, links stay inside."""

    def __init__(self, machine: Machine, session: GuestSession, *, writable: bool) -> None:
        self._machine = machine
        self._session = session
        self._writable = writable
        self._mounts = self._fstab()

    def _fstab(self) -> list[tuple[PurePosixPath, int]]:
        """Returns (mount point, disk index), longest first."""
        disks = {
            disk.filesystem_uuid: index for index, disk in enumerate(self._machine.record.disks) if disk.filesystem
        }
        root = next((index for index, disk in enumerate(self._machine.record.disks) if disk.mountpoint == "/"), None)
        if root is None:
            raise InvalidRequestError(f"{self._machine.record.name} has no disk with a root file system")
        mounts = [(PurePosixPath("/"), root)]
        table = self._session.root(root, writable=False) / "etc/fstab"
        for line in table.read_text().splitlines() if table.is_file() else []:
            fields = line.split()
            if len(fields) >= 2 and fields[0].startswith("UUID="):
                index = disks.get(fields[0].removeprefix("UUID="))
                if index is not None and fields[1] != "/":
                    mounts.append((PurePosixPath(fields[1]), index))
        return sorted(mounts, key=lambda mount: len(mount[0].parts), reverse=True)

    def _locate(self, path: PurePosixPath, *, writable: bool = False) -> Path:
        for mountpoint, index in self._mounts:
            if path.is_relative_to(mountpoint):
                return self._session.root(index, writable=writable) / path.relative_to(mountpoint)
        raise NotFoundError(f"{path} is on no disk of {self._machine.record.name}")

    def resolve(self, path: str, *, create_parents: bool = False, follow_last: bool = True) -> Path:
        """Returns where a guest's path is on the host.

        Args:
            path: Absolute path in the guest.
            create_parents: Make missing folders; the last part may then be missing too.
            follow_last: Follow a link in the last part.

        Raises:
            NotFoundError: A part of it does not exist.
            InvalidRequestError: The path is relative or runs through a file.
        """
        if not path.startswith("/"):
            raise InvalidRequestError(f"{path!r} is not an absolute path in the guest")
        here, todo, links = PurePosixPath("/"), list(PurePosixPath(path).parts[1:]), 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                here = here.parent
                continue
            host = self._locate(here / part)
            if host.is_symlink() and (todo or follow_last):
                links += 1
                if links > MAX_LINKS:
                    raise InvalidRequestError(f"{path}: too many links")
                aim = PurePosixPath(host.readlink())
                here = PurePosixPath("/") if aim.is_absolute() else here
                todo = [*(aim.parts[1:] if aim.is_absolute() else aim.parts), *todo]
                continue
            here = here / part
            if not host.exists() and not host.is_symlink():
                if not create_parents:
                    raise NotFoundError(f"{path} does not exist in {self._machine.record.name}")
                if todo:
                    self._locate(here, writable=True).mkdir()
            elif todo and not host.is_dir():
                raise InvalidRequestError(f"{path}: {host.name} is not a directory")
        return self._locate(here, writable=self._writable)
