"""A day in the life of a guest: files overwritten, made, deleted, grown and renamed at random, repeatably."""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path

from sendense_lab.content import KIB, ByteStream, write_file
from sendense_lab.errors import InvalidRequestError
from sendense_lab.guestdisks import guest_session
from sendense_lab.machine import Machine


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
    with guest_session(machine) as session:
        indexes = [index for index, disk in enumerate(machine.record.disks) if disk.filesystem]
        roots = [session.root(index, writable=True) for index in indexes]
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
