"""The immutable attribute of files (`chattr +i`), which not even root writes past before taking it away.

ext4, XFS and Btrfs have it; setting it needs CAP_LINUX_IMMUTABLE. It guards against accidents and simple malice on the
server, besides the locks that Sendense itself keeps. Functions block for the disk.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sendense_repository import durable

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_IMMUTABLE = 0x00000010
_FLAGS = struct.Struct("l")


def supports_immutable(directory: Path) -> bool:
    """Tells whether files in a directory can be made immutable, by trying with one of our own."""
    with tempfile.NamedTemporaryFile(prefix=durable.TEMPORARY_PREFIX, dir=directory) as stream:
        path = Path(stream.name)
        try:
            _set(path, immutable=True)
        except OSError:
            return False
        _set(path, immutable=False)
        return True


def protect(paths: Iterable[Path]) -> None:
    """Makes files immutable; what is not there is no error.

    Raises:
        OSError: The file system or the process's privileges do not allow it.
    """
    for path in paths:
        _set_if_there(path, immutable=True)


def unprotect(paths: Iterable[Path]) -> None:
    """Takes the attribute away, before files are replaced or removed by us; what has none, or is gone, is no error."""
    for path in paths:
        if is_immutable(path):
            _set_if_there(path, immutable=False)


def is_immutable(path: Path) -> bool:
    """Tells whether a file is immutable; False where there is no such file or attribute."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return bool(_get(descriptor) & _IMMUTABLE)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _set_if_there(path: Path, *, immutable: bool) -> None:
    try:
        _set(path, immutable=immutable)
    except FileNotFoundError:
        return


def _set(path: Path, *, immutable: bool) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        flags = _get(descriptor)
        wanted = flags | _IMMUTABLE if immutable else flags & ~_IMMUTABLE
        if wanted != flags:
            fcntl.ioctl(descriptor, _SET_FLAGS, _FLAGS.pack(wanted))
    finally:
        os.close(descriptor)


def _get(descriptor: int) -> int:
    flags: int = _FLAGS.unpack(fcntl.ioctl(descriptor, _GET_FLAGS, _FLAGS.pack(0)))[0]
    return flags
