"""Copies of files that share their blocks with the original (reflinks), where the file system has them."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from sendense_repository import durable

_FICLONE = 0x40049409
"""`_IOW(0x94, 9, int)`, linux/fs.h."""
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})


def clone(source: Path, target: Path) -> bool:
    """Makes `target` a copy of `source` that shares its blocks; False, with no target left, where that is impossible.

    Raises:
        FileExistsError: There is a target already.
        OSError: The source cannot be read, or the file system is full.
    """
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError as error:
            target.unlink()
            if error.errno in _CANNOT:
                return False
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return True


def can_clone(root: Path) -> bool:
    """Tells whether files below `root` can share blocks; tries it and leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix=durable.TEMPORARY_PREFIX, dir=root) as name:
        first = Path(name) / "first"
        first.write_bytes(bytes(4096))
        return clone(first, Path(name) / "second")
