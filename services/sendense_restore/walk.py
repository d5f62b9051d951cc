"""Everything below a directory, one entry after the other: memory for the depth only, no link followed.

Directories are opened one below the other by descriptor (openat with O_NOFOLLOW), so nothing that is renamed or made
a link meanwhile leads elsewhere. Blocks: run it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

MAX_DEPTH = 512
"""Deeper directories are passed over: each level holds a descriptor."""
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME


@dataclass(frozen=True, slots=True)
class Step:
    """One entry.

    Attributes:
        directory: Descriptor of the directory that holds it; good until the next step.
        name: Its name.
        path: Its path below the directory where the walk began.
        is_directory: Whether it is a directory; what is in it comes after it.
    """

    directory: int
    name: bytes
    path: bytes
    is_directory: bool


class Walk:
    """Goes through all that is below a directory; a context manager that closes every descriptor.

    Args:
        directory: Descriptor of the directory, which the walk closes.

    Attributes:
        skipped: How many directories could not be read, or are too deep.
    """

    def __init__(self, directory: int) -> None:
        self.skipped = 0
        self._open: list[tuple[int, Iterator[os.DirEntry[str]], bytes]] = []
        self._push(directory, b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._pop()

    def __iter__(self) -> Iterator[Step]:
        while self._open:
            directory, entries, prefix = self._open[-1]
            try:
                entry = next(entries, None)
            except OSError:
                self.skipped += 1
                entry = None
            if entry is None:
                self._pop()
                continue
            name = os.fsencode(entry.name)
            path = prefix + b"/" + name if prefix else name
            try:
                is_directory = entry.is_dir(follow_symlinks=False)
            except OSError:
                is_directory = False
            yield Step(directory, name, path, is_directory)
            if is_directory:
                self._enter(directory, name, path)

    def _enter(self, directory: int, name: bytes, path: bytes) -> None:
        if len(self._open) >= MAX_DEPTH:
            self.skipped += 1
            return
        try:
            below = os.open(name, _FLAGS, dir_fd=directory)
        except OSError:
            self.skipped += 1
            return
        self._push(below, path)

    def _push(self, directory: int, path: bytes) -> None:
        try:
            self._open.append((directory, os.scandir(directory), path))
        except OSError:
            os.close(directory)
            self.skipped += 1

    def _pop(self) -> None:
        directory, entries, _ = self._open.pop()
        close = getattr(entries, "close", None)
        if close is not None:
            close()
        os.close(directory)
