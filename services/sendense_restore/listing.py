"""Pages of a directory, sorted by name, cheap for directories with a million entries.

Only the entries of the page are looked at with stat; the sorted names of the directories that were listed last are
kept, since a mounted restore point does not change. Functions block: run them in a thread.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.errors import FileUnreadable, InvalidPageToken
from sendense_restore.paths import GuestPath, open_directory

DEFAULT_PAGE = 500
MAX_PAGE = 1000
_PAGE_BYTES = 256 << 10
"""A page ends early when its names and link targets take this much: an answer above 1 MiB fails at the gateway."""
_WINDOW_NAMES = 200_000
"""So many names are kept in all: a directory with a million is read five times for all its pages."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a directory holds under one name.

    Attributes:
        name: Its bytes.
        kind: `file`, `directory`, `symlink` or `other`.
        size_bytes: Size in bytes.
        mode: Permission bits.
        uid: Owner's number.
        gid: Group's number.
        modified_ns: Nanoseconds since 1970 at which the content was last changed.
        link_target: Where a symbolic link leads; empty for anything else.
    """

    name: bytes
    kind: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_ns: int
    link_target: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, and the token of the page after; empty on the last one."""

    entries: tuple[Entry, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class _Window:
    """Sorted names of a directory that come after `start`; to its end when `complete`."""

    start: bytes | None
    names: list[bytes]
    complete: bool

    def after(self, last: bytes | None, count: int) -> list[bytes] | None:
        """Returns up to `count` names after `last`, None when the window does not hold them."""
        if self.start is not None and (last is None or last < self.start):
            return None
        begin = 0 if last is None else bisect.bisect_right(self.names, last)
        if begin + count > len(self.names) and not self.complete:
            return None
        return self.names[begin : begin + count]


class SortedNames:
    """Keeps runs of sorted names of directories of one mount; safe for use by several threads."""

    def __init__(self, window: int = _WINDOW_NAMES) -> None:
        self._size = window
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    def after(self, directory: int, last: bytes | None, count: int) -> list[bytes]:
        """Returns up to `count` names of a directory, in order, that come after `last`.

        Args:
            directory: Descriptor of the directory.
            last: A name, None for the start.
            count: At most this many; less than the window.
        """
        status = os.fstat(directory)
        key = (status.st_dev, status.st_ino)
        with self._lock:
            window = self._kept.get(key)
        names = window.after(last, count) if window else None
        if names is None:
            window = self._read(directory, last)
            names = window.names[:count]
            self._keep(key, window)
        return names

    def _read(self, directory: int, last: bytes | None) -> _Window:
        found = (os.fsencode(name) for name in os.listdir(directory))
        names = sorted(name for name in found if last is None or name > last)
        return _Window(last, names[: self._size], complete=len(names) <= self._size)

    def _keep(self, key: tuple[int, int], window: _Window) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = window
            while len(self._kept) > 1 and sum(len(kept.names) for kept in self._kept.values()) > self._size:
                self._kept.popitem(last=False)


def list_directory(names: SortedNames, root: Path, path: GuestPath, size: int, token: str) -> Page:
    """Returns a page of a directory.

    Args:
        names: The mount's kept names.
        root: Directory on the host that is the path's root.
        path: The directory.
        size: Entries a page; 0 means 500, more than 1000 means 1000.
        token: `next_token` of the page before; empty for the first.

    Raises:
        NotADirectory: The path is something else.
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
        InvalidPageToken: The token was made up.
    """
    limit = min(size, MAX_PAGE) if size > 0 else DEFAULT_PAGE
    last = _decode_token(token)
    directory = open_directory(root, path)
    try:
        found = names.after(directory, last, limit + 1)
        entries: list[Entry] = []
        room = _PAGE_BYTES
        for name in found[:limit]:
            entry = _look(directory, name)
            entries.append(entry)
            room -= len(entry.name) + len(entry.link_target)
            if room <= 0:
                break
    except OSError as error:
        raise FileUnreadable(path.display, error.strerror or str(error)) from error
    finally:
        os.close(directory)
    more = len(found) > len(entries)
    return Page(tuple(entries), _encode_token(entries[-1].name) if more else "")


def _look(directory: int, name: bytes) -> Entry:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
    except OSError:
        # A damaged inode must not hide its neighbours: the name is shown, its content cannot be asked for.
        return Entry(name, "other", 0, 0, 0, 0, 0, b"")
    return Entry(
        name=name,
        kind=kind_of(status.st_mode),
        size_bytes=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modified_ns=status.st_mtime_ns,
        link_target=target,
    )


def kind_of(mode: int) -> str:
    """Returns the word for a file's kind."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _encode_token(last: bytes) -> str:
    return base64.urlsafe_b64encode(last).decode("ascii")


def _decode_token(token: str) -> bytes | None:
    if not token:
        return None
    try:
        name = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise InvalidPageToken from error
    if not name or b"/" in name or b"\0" in name:
        raise InvalidPageToken
    return name
