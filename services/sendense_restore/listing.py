"""Pages of a directory in any order, cheap in time and bounded in memory for directories with a million entries.

Each order gives an entry a key (bytes that sort as the order wants, unique in the directory); a page token is the key
of the page's last entry. The sorted keys that come next are kept for the directories that were listed last, since a
mounted restore point does not change. By name, only the entries of the page are looked at with stat. Functions block:
run them in a thread.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import fnmatch
import heapq
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.entries import Entry, look
from sendense_restore.errors import FileUnreadable, InvalidPageToken
from sendense_restore.names import escape
from sendense_restore.paths import GuestPath, open_directory

DEFAULT_PAGE = 500
MAX_PAGE = 1000
_PAGE_BYTES = 256 << 10
"""A page ends early when its names and link targets take this much: an answer above 1 MiB fails at the gateway."""
_WINDOW_KEYS = 200_000
"""So many keys are kept in all: a directory with a million entries is read five times for all its pages."""
_NUMBER_BYTES = 8
_MIDDLE = 1 << 63  # makes times before 1970 sort before those after
_MAX_KEY = 1024
_INVERTED = bytes(255 - byte for byte in range(256))
_END = b"\0"  # ends a name in an inverted key's source: no name holds it, and it sorts before all that may follow


@dataclass(frozen=True, slots=True)
class Order:
    """An order of entries, and which of them are wanted.

    Attributes:
        field: `name`, `size` or `modified`.
        descending: The other way round.
        pattern: Shell pattern for names as they are shown; empty for all.
    """

    field: str = "name"
    descending: bool = False
    pattern: str = ""

    @classmethod
    def of(cls, order_by: str, pattern: str) -> Order:
        """Reads the field `order_by` of a request; it was checked against the list of those that exist."""
        return cls(order_by.removeprefix("-") or "name", order_by.startswith("-"), pattern)

    @property
    def number_bytes(self) -> int:
        """How many bytes of a key come before the name."""
        return 0 if self.field == "name" else _NUMBER_BYTES

    def key(self, directory: int, name: bytes) -> bytes:
        """Returns an entry's key."""
        number = b""
        if self.field != "name":
            entry = look(directory, name)
            value = entry.size_bytes if self.field == "size" else entry.modified_ns
            number = min(max(value + _MIDDLE, 0), 2 * _MIDDLE - 1).to_bytes(_NUMBER_BYTES, "big")
        whole = number + name
        return (whole + _END).translate(_INVERTED) if self.descending else whole

    def name_of(self, key: bytes) -> bytes:
        """Returns the name in a key."""
        whole = key.translate(_INVERTED).removesuffix(_END) if self.descending else key
        return whole[self.number_bytes :]


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, and the token of the page after; empty on the last one."""

    entries: tuple[Entry, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class _Window:
    """Sorted keys of a directory that come after `start`; to its end when `complete`."""

    start: bytes | None
    keys: list[bytes]
    complete: bool

    def after(self, last: bytes | None, count: int) -> list[bytes] | None:
        """Returns up to `count` keys after `last`, None when the window does not hold them."""
        if self.start is not None and (last is None or last < self.start):
            return None
        begin = 0 if last is None else bisect.bisect_right(self.keys, last)
        if begin + count > len(self.keys) and not self.complete:
            return None
        return self.keys[begin : begin + count]


class Listings:
    """Keeps runs of sorted keys of directories of one mount; safe for use by several threads."""

    def __init__(self, window: int = _WINDOW_KEYS) -> None:
        self._size = window
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int, Order], _Window] = OrderedDict()

    def after(self, directory: int, order: Order, last: bytes | None, count: int) -> list[bytes]:
        """Returns up to `count` keys of a directory, in order, that come after `last`.

        Args:
            directory: Descriptor of the directory.
            order: The order.
            last: A key, None for the start.
            count: At most this many; less than the window.
        """
        status = os.fstat(directory)
        place = (status.st_dev, status.st_ino, order)
        with self._lock:
            window = self._kept.get(place)
        keys = window.after(last, count) if window else None
        if keys is None:
            found = heapq.nsmallest(self._size + 1, _keys(directory, order, last))
            window = _Window(last, found[: self._size], complete=len(found) <= self._size)
            keys = window.keys[:count]
            self._keep(place, window)
        return keys

    def _keep(self, place: tuple[int, int, Order], window: _Window) -> None:
        with self._lock:
            self._kept.pop(place, None)
            self._kept[place] = window
            while len(self._kept) > 1 and sum(len(kept.keys) for kept in self._kept.values()) > self._size:
                self._kept.popitem(last=False)


def _keys(directory: int, order: Order, last: bytes | None) -> Iterator[bytes]:
    wanted = re.compile(fnmatch.translate(order.pattern)) if order.pattern else None
    with os.scandir(directory) as found:
        for entry in found:
            name = os.fsencode(entry.name)
            if wanted is not None and not wanted.match(escape(name)):
                continue
            key = order.key(directory, name)
            if last is None or key > last:
                yield key


def list_directory(listings: Listings, root: Path, path: GuestPath, order: Order, size: int, token: str) -> Page:
    """Returns a page of a directory.

    Args:
        listings: What the mount keeps of its directories.
        root: Directory on the host that is the path's root.
        path: The directory.
        order: Which entries, in which order.
        size: Entries a page; 0 means 500, more than 1000 means 1000.
        token: `next_token` of the page before; empty for the first.

    Raises:
        NotADirectory: The path is something else.
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
        InvalidPageToken: The token was made up.
    """
    limit = min(size, MAX_PAGE) if size > 0 else DEFAULT_PAGE
    last = _decode_token(token, order)
    directory = open_directory(root, path)
    try:
        found = listings.after(directory, order, last, limit + 1)
        entries: list[Entry] = []
        room = _PAGE_BYTES
        for key in found[:limit]:
            entry = look(directory, order.name_of(key))
            entries.append(entry)
            room -= len(entry.name) + len(entry.link_target)
            if room <= 0:
                break
    except OSError as error:
        raise FileUnreadable(path.display, error.strerror or str(error)) from error
    finally:
        os.close(directory)
    more = len(found) > len(entries)
    return Page(tuple(entries), _encode_token(found[len(entries) - 1]) if more else "")


def _encode_token(last: bytes) -> str:
    return base64.urlsafe_b64encode(last).decode("ascii")


def _decode_token(token: str, order: Order) -> bytes | None:
    if not token:
        return None
    try:
        key = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise InvalidPageToken from error
    name = order.name_of(key)
    if len(key) > _MAX_KEY or not name or b"/" in name or b"\0" in name:
        raise InvalidPageToken
    return key
