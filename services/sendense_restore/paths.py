"""Paths of a guest, resolved inside its mount: no link and no `..` leads to the host.

openat2(2) with RESOLVE_IN_ROOT does what chroot would: absolute links start at the mount's root, `..` stops there.
RESOLVE_NO_XDEV is not used, since the guest's volumes are bound into its root. What was found is first opened with
O_PATH, which neither waits at a FIFO nor wakes a device; only what proved to be a regular file or a directory is
then opened for reading, through the same descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.errors import FileMissing, FileUnreadable, InvalidPath, NotADirectory, PathOutsideMount
from sendense_restore.names import escape, unescape

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_RACES = 100
"""openat2 answers EAGAIN when anything on the host was renamed or mounted while it resolved a `..`."""

_VOLUME = re.compile(r"(disk-\d+(?:-part-\d+)?|(?:lv|md|luks|dm)-[A-Za-z0-9+_.-]+):(/.*|)", re.DOTALL)
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class GuestPath:
    """A path in a restore point.

    Attributes:
        parts: Its components; may hold `..`, which a symbolic link before it can make harmless or not.
        volume: Name of the volume that it starts in; empty for the guest's composed root.
    """

    parts: tuple[bytes, ...]
    volume: str = ""

    @property
    def relative(self) -> bytes:
        """The path below the root, `.` for the root itself."""
        return b"/".join(self.parts) or b"."

    @property
    def name(self) -> bytes:
        """Last component; empty for the root."""
        return self.parts[-1] if self.parts else b""

    @property
    def display(self) -> str:
        """The path as listings show it and as requests take it."""
        prefix = f"{self.volume}:" if self.volume else ""
        return prefix + "/" + escape(b"/".join(self.parts))


def parse_guest_path(text: str) -> GuestPath:
    """Reads a path of a request: absolute in the guest, or `<volume>:/…` in one volume; empty means the root.

    Raises:
        InvalidPath: It is relative, or an escape in it is malformed.
        PathOutsideMount: Its `..` lead above the root, whatever the guest holds.
    """
    volume, rest = "", text
    if match := _VOLUME.fullmatch(text):
        volume, rest = match.groups()
    if rest and not rest.startswith("/"):
        raise InvalidPath(text, "it does not start with '/'")
    try:
        raw = unescape(rest)
    except ValueError as error:
        raise InvalidPath(text, str(error)) from error
    if b"\0" in raw:
        raise InvalidPath(text, "it holds a NUL")
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    depth = 0
    for part in parts:
        depth += -1 if part == b".." else 1
        if depth < 0:
            raise PathOutsideMount(text)
    return GuestPath(parts, volume)


def open_in_root(root: int, relative: bytes, flags: int) -> int:
    """Opens a path below a directory as if that directory were `/`.

    Args:
        root: Descriptor of the directory.
        relative: The path; a leading slash means the same directory.
        flags: As for open(2); O_CLOEXEC is added.

    Returns:
        A new descriptor.

    Raises:
        OSError: As open(2) would; ELOOP for a magic link.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_RACES):
        fd = _libc.syscall(_SYS_OPENAT2, root, ctypes.c_char_p(relative), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), os.fsdecode(relative))


@contextmanager
def located(root: Path, path: GuestPath, *, follow: bool = True) -> Iterator[tuple[int, os.stat_result]]:
    """Finds a file without opening its content; symbolic links are followed, inside the root.

    Args:
        root: Directory on the host that is the path's root.
        path: The path.
        follow: Whether a symbolic link at its end is followed too.

    Yields:
        An O_PATH descriptor and its stat.

    Raises:
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
    """
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root_fd, path.relative, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        finally:
            os.close(root_fd)
    except OSError as error:
        raise _path_error(path, error) from error
    try:
        yield fd, os.fstat(fd)
    finally:
        os.close(fd)


def open_directory(root: Path, path: GuestPath) -> int:
    """Opens a directory for listing; the caller closes the descriptor.

    Raises:
        NotADirectory: It is something else.
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
    """
    with located(root, path) as (fd, status):
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectory(path.display)
        return reopen(fd, os.O_RDONLY | os.O_DIRECTORY, path)


def reopen(fd: int, flags: int, path: GuestPath) -> int:
    """Opens for reading what an O_PATH descriptor stands for; `path` is for the error's text.

    Raises:
        FileUnreadable: The file system does not give it.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _path_error(path, error) from error


def read_file(root: Path, path: GuestPath, limit: int) -> bytes | None:
    """Reads a small regular file of a guest; None when it is not there, is larger, or cannot be read."""
    try:
        with located(root, path) as (fd, status):
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                return None
            content = reopen(fd, os.O_RDONLY, path)
        with os.fdopen(content, "rb") as file:
            return file.read(limit)
    except (FileMissing, FileUnreadable, OSError):
        return None


def _path_error(path: GuestPath, error: OSError) -> FileMissing | FileUnreadable:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return FileMissing(path.display)
    if error.errno == errno.ELOOP:
        return FileUnreadable(path.display, "its symbolic links go in a circle, or one leads into /proc")
    return FileUnreadable(path.display, error.strerror or str(error))
