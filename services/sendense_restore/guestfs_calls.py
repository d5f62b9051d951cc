"""The calls of libguestfs that take or give names of guests' files, as bytes.

libguestfs' own Python module makes text of names and fails at one that is not UTF-8; so these calls go to the C library
by ctypes, with the module's handle. All block, and only one thread may call.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 2 << 20
"""One read gives no more: an answer of libguestfs is at most 4 MiB long."""
_NANO = 1_000_000_000


class _Stat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
            *("atime_sec", "atime_nsec", "mtime_sec", "mtime_nsec", "ctime_sec", "ctime_nsec"),
            *(f"spare{number}" for number in range(1, 7)),
        )
    ]


class _Entry(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_int64), ("kind", ctypes.c_char), ("name", ctypes.c_char_p)]


class _Xattr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("length", ctypes.c_uint32), ("value", ctypes.c_void_p)]


class _Stats(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("values", ctypes.POINTER(_Stat))]


class _Entries(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("values", ctypes.POINTER(_Entry))]


class _Xattrs(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("values", ctypes.POINTER(_Xattr))]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What lstat(2) tells in the micro-VM; times in ns since 1970, blocks of 512 bytes."""

    device: int
    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    special: int
    size: int
    blocks: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int


class Listing:
    """Names of a directory, kept as the library gave them: a million takes some 60 MB.

    Attributes:
        count: How many.
    """

    def __init__(self, found: Any, free: Callable[[Any], None]) -> None:
        self._found = found
        self._free = free
        self.count = int(found.contents.length)

    def at(self, index: int) -> tuple[bytes, bytes, int]:
        """Returns name, kind (a letter, see guestfs_readdir) and inode."""
        entry = self._found.contents.values[index]
        return entry.name or b"", entry.kind, entry.ino

    def close(self) -> None:
        """Frees it; nothing else may be asked any more."""
        if self.count >= 0:
            self.count = -1
            self._free(self._found)


class NameListing:
    """As `Listing`, of a directory so large that libguestfs gives names only; their kinds are unknown.

    Attributes:
        count: How many.
    """

    def __init__(self, names: Any, free: Callable[[Any], None]) -> None:
        self._names = names
        self._free = free
        self.count = next(index for index in itertools.count() if names[index] is None)

    def at(self, index: int) -> tuple[bytes, bytes, int]:
        """Returns name, `u` and 0."""
        return ctypes.string_at(self._names[index]), b"u", 0

    def close(self) -> None:
        """Frees it; nothing else may be asked any more."""
        for index in range(self.count):
            self._free(self._names[index])
        if self.count >= 0:
            self._free(self._names)
        self.count = -1


class GuestCalls:
    """The calls.

    Args:
        guest: A `guestfs.GuestFS` that was launched.
    """

    def __init__(self, guest: Any) -> None:
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self._guest = guest
        self._handle = ctypes.c_void_p(get_pointer(guest._o, b"guestfs_h"))  # noqa: SLF001 - its only way to C
        self._library = ctypes.CDLL("libguestfs.so.0")
        self._libc = ctypes.CDLL(None)
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._library.guestfs_last_error.restype = ctypes.c_char_p

    def entries(self, directory: bytes) -> Listing | NameListing:
        """Lists a directory, with `.` and `..` where it is small.

        Raises:
            OSError: It cannot be read; so do all methods.
        """
        try:
            found = self._call("readdir", ctypes.POINTER(_Entries), directory)
        except OSError:  # from some 100,000 entries on, its answer is longer than libguestfs allows
            names = self._call("ls", ctypes.POINTER(ctypes.c_void_p), directory)
            return NameListing(names, self._libc.free)
        return Listing(found, lambda entries: self._free("dirent_list", entries))

    def look(self, path: bytes) -> FileFacts:
        """Looks at a file, not following a link."""
        found = self._call("lstatns", ctypes.POINTER(_Stat), path)
        try:
            return _facts(found.contents)
        finally:
            self._free("statns", found)

    def look_at_all(self, directory: bytes, names: Sequence[bytes]) -> list[FileFacts | None]:
        """Looks at many files of a directory; None for one that cannot be looked at."""
        found = self._call("lstatnslist", ctypes.POINTER(_Stats), directory, _strings(names))
        try:
            stats = [found.contents.values[index] for index in range(found.contents.length)]
            return [_facts(stat) if stat.ino != -1 else None for stat in stats]
        finally:
            self._free("statns_list", found)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        """Returns a file's extended attributes."""
        with self._xattrs("lgetxattrs", path) as found:
            return dict(found)

    def xattrs_of_all(self, directory: bytes, names: Sequence[bytes]) -> list[dict[bytes, bytes]]:
        """Returns the extended attributes of many files of a directory."""
        result: list[dict[bytes, bytes]] = []
        with self._xattrs("lxattrlist", directory, _strings(names)) as found:
            for name, value in found:
                if not name:  # comes before the attributes of each file, with their number
                    result.append({})
                else:
                    result[-1][name] = value
        if len(result) != len(names):
            raise OSError(errno.EIO, "libguestfs does not answer for every file")
        return result

    def read_link(self, path: bytes) -> bytes:
        """Returns where a symbolic link leads."""
        return self._text("readlink", path)

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """Reads up to so many bytes, at most `MOST_BYTES`; fewer where the library gives fewer."""
        length = ctypes.c_size_t()
        where = (ctypes.c_int(min(size, MOST_BYTES)), ctypes.c_int64(offset), ctypes.byref(length))
        found = self._call("pread", ctypes.c_void_p, path, *where)
        try:
            return ctypes.string_at(found, length.value)
        finally:
            self._libc.free(found)

    def volume_facts(self, mount_point: str) -> dict[str, int]:
        """Returns what statvfs(3) tells, by its names without `f_`."""
        try:
            return {name: int(value) for name, value in self._guest.statvfs(mount_point).items()}
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error)) from error

    def run(self, command: bytes) -> bytes:
        """Runs a shell command in the micro-VM, as its root, and returns what it prints (4 MiB at most)."""
        return self._text("debug", b"sh", _strings([command]))

    def _text(self, call: str, *arguments: Any) -> bytes:
        found = self._call(call, ctypes.c_void_p, *arguments)
        try:
            return ctypes.string_at(found)
        finally:
            self._libc.free(found)

    @contextmanager
    def _xattrs(self, call: str, *arguments: Any) -> Iterator[Iterator[tuple[bytes, bytes]]]:
        found = self._call(call, ctypes.POINTER(_Xattrs), *arguments)
        try:
            values = (found.contents.values[index] for index in range(found.contents.length))
            yield ((each.name, ctypes.string_at(each.value, each.length) if each.length else b"") for each in values)
        finally:
            self._free("xattr_list", found)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, f"guestfs_{name}")
        function.restype = result
        found = function(self._handle, *arguments)
        if not found:
            number = self._library.guestfs_last_errno(self._handle) or errno.EIO
            raise OSError(number, (self._library.guestfs_last_error(self._handle) or b"").decode("utf-8", "replace"))
        return found

    def _free(self, kind: str, found: Any) -> None:
        getattr(self._library, f"guestfs_free_{kind}")(found)


def _strings(values: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _facts(stat: _Stat) -> FileFacts:
    return FileFacts(
        device=stat.dev,
        inode=stat.ino,
        mode=stat.mode,
        links=stat.nlink,
        uid=stat.uid,
        gid=stat.gid,
        special=stat.rdev,
        size=stat.size,
        blocks=stat.blocks,
        accessed_ns=stat.atime_sec * _NANO + stat.atime_nsec,
        modified_ns=stat.mtime_sec * _NANO + stat.mtime_nsec,
        changed_ns=stat.ctime_sec * _NANO + stat.ctime_nsec,
    )
