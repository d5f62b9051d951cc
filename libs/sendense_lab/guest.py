"""What the guest of a VM does: writing bytes, putting, reading and removing files, and a day of random changes."""

from __future__ import annotations

import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sendense_lab.content import KIB, MIB, ByteStream, write_file
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.machine import GuestSession, Machine

MAX_LINKS = 40


def write_bytes(machine: Machine, disk: int, offset: int, source: Path | None, seed: int, length: int) -> int:
    """Writes a byte range of a disk, as a program using the raw device would.

    Args:
        machine: The VM.
        disk: Index of the disk.
        offset: First byte.
        source: File with the bytes; None takes `length` bytes of the seed's stream.
        seed: Seed of the bytes.
        length: How many.

    Returns:
        Bytes written.

    Raises:
        InvalidRequestError: The range leaves the disk.
    """
    size = source.stat().st_size if source else length
    capacity = machine.disk_at(disk).capacity
    if offset < 0 or size <= 0 or offset + size > capacity:
        raise InvalidRequestError(f"{size} bytes at {offset} do not lie inside the disk of {capacity} bytes")
    with machine.guest() as session, session.file(disk).open("r+b") as target:
        target.seek(offset)
        if source:
            with source.open("rb") as reader:
                shutil.copyfileobj(reader, target, MIB)
        else:
            for chunk in ByteStream("write", seed).chunks(size):
                target.write(chunk)
    return size


def put(machine: Machine, local: Path, path: str) -> int:
    """Puts a local file into the guest, making folders as needed; returns its bytes."""
    with machine.guest() as session:
        target = GuestPaths(machine, session, writable=True).resolve(path, create_parents=True)
        if target.is_dir():
            raise InvalidRequestError(f"{path} is a directory in the guest")
        shutil.copyfile(local, target)
        return target.stat().st_size


def remove(machine: Machine, path: str) -> int:
    """Removes a file or a whole directory of the guest; returns the number of files that went."""
    with machine.guest() as session:
        target = GuestPaths(machine, session, writable=True).resolve(path, follow_last=False)
        if target in (session.root(index, writable=False) for index in session.touched):
            raise InvalidRequestError(f"{path} is the root of a file system")
        if not target.is_dir() or target.is_symlink():
            target.unlink()
            return 1
        count = sum(len(files) for _, _, files in os.walk(target))
        shutil.rmtree(target)
        return count


def read(machine: Machine, path: str, output: Path) -> int:
    """Copies a file of the guest to a local one; returns its bytes. Nothing is written in the guest."""
    with machine.guest(read_only=True) as session:
        source = GuestPaths(machine, session, writable=False).resolve(path)
        if not source.is_file():
            raise InvalidRequestError(f"{path} is not a regular file")
        shutil.copyfile(source, output)
        return output.stat().st_size


class GuestPaths:
    """Resolves paths as the guest sees them: its fstab says which disk holds what, links stay inside."""

    def __init__(self, machine: Machine, session: GuestSession, *, writable: bool) -> None:
        self._machine = machine
        self._session = session
        self._writable = writable
        self._mounts = self._fstab()

    def _fstab(self) -> list[tuple[PurePosixPath, int]]:
        """Returns (mount point, disk index), longest first."""
        disks = {disk.filesystem_uuid: index for index, disk in enumerate(self._machine.record.disks)}
        mounts = [(PurePosixPath("/"), 0)]
        table = self._session.root(0, writable=False) / "etc/fstab"
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


@dataclass
class Changes:
    """What a run of random changes did."""

    file_bytes: int = 0
    """Bytes in the guest's files before."""
    bytes_changed: int = 0
    """Bytes written, and bytes of files deleted."""
    operations: dict[str, int] = field(default_factory=dict)

    def add(self, operation: str, size: int) -> None:
        """Counts one operation."""
        self.operations[operation] = self.operations.get(operation, 0) + 1
        self.bytes_changed += size

    @property
    def files_changed(self) -> int:
        """Files touched, each operation counting one."""
        return sum(self.operations.values())


KINDS = (("overwrite", 62), ("create", 12), ("delete", 10), ("append", 8), ("rename", 8))
SMALL = 64 * KIB
SMALL_PER_RUN = 0.02
"""Most of the changed bytes that may be in small files: each of them costs a whole tracking block."""


def run_changes(machine: Machine, share: float, seed: int) -> Changes:
    """Changes files at random until about a share of the guest's file bytes has changed.

    Args:
        machine: The VM.
        share: 0 … 1 of the bytes in all files.
        seed: Makes the run repeatable.

    Returns:
        What was done.

    Raises:
        InvalidRequestError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise InvalidRequestError(f"A share of {share} is not between 0 and 1")
    with machine.guest() as session:
        roots = [session.root(index, writable=True) for index in range(len(machine.record.disks))]
        files = {path: size for root in roots for path, size in _regular_files(root)}
        changes = Changes(file_bytes=sum(files.values()))
        _Mutator(random.Random(seed), ByteStream("run", seed), files, changes).until(share)
        return changes


def _regular_files(root: Path) -> list[tuple[Path, int]]:
    found = []
    for folder, directories, names in os.walk(root / "srv"):
        directories.sort()
        for name in sorted(names):
            path = Path(folder) / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
    return found


class _Mutator:
    """Random changes on known files, which it keeps account of."""

    def __init__(self, rng: random.Random, stream: ByteStream, files: dict[Path, int], changes: Changes) -> None:
        self._rng = rng
        self._stream = stream
        self._files = files
        self._changes = changes
        self._large = [path for path, size in files.items() if size > SMALL]
        self._small = [path for path, size in files.items() if size <= SMALL]
        self._made = 0

    def until(self, share: float) -> None:
        target = int(self._changes.file_bytes * share)
        small_until = int(target * SMALL_PER_RUN)
        while self._changes.bytes_changed < target and (self._large or self._small):
            left = target - self._changes.bytes_changed
            if self._small and (self._changes.bytes_changed < small_until or not self._large):
                self._one(self._small, left)
            else:
                self._one(self._large, left)

    def _one(self, candidates: list[Path], left: int) -> None:
        position = self._rng.randrange(len(candidates))
        path = candidates[position]
        size = self._files[path]
        kind = self._rng.choices([name for name, _ in KINDS], [weight for _, weight in KINDS])[0]
        if size > left:  # the last bit: part of a file, so that the share is met
            self._overwrite(path, left)
        elif kind == "overwrite":
            self._overwrite(path, size)
        elif kind == "create":
            self._made += 1
            fresh = path.with_name(f"new-{self._made:05d}-{path.name}")
            if fresh not in self._files:
                write_file(fresh, size, self._stream)
                self._track(candidates, fresh, size)
                self._changes.add("create", size)
        elif kind == "delete":
            path.unlink()
            del self._files[path]
            candidates.pop(position)
            self._changes.add("delete", size)
        elif kind == "append":
            added = min(self._rng.randint(KIB, max(KIB, size // 2)), left)
            with path.open("ab") as file:
                file.write(self._stream.read(added))
            self._files[path] = size + added
            self._changes.add("append", added)
        else:
            self._made += 1
            moved = path.with_name(f"moved-{self._made:05d}-{path.name}")
            if moved not in self._files:
                path.rename(moved)
                del self._files[path]
                candidates.pop(position)
                self._track(candidates, moved, size)
                self._changes.add("rename", 0)

    def _overwrite(self, path: Path, length: int) -> None:
        with path.open("r+b") as file:
            for chunk in self._stream.chunks(length):
                file.write(chunk)
        self._changes.add("overwrite", length)

    def _track(self, candidates: list[Path], path: Path, size: int) -> None:
        candidates.append(path)
        self._files[path] = size
