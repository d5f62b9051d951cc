"""Room on the file system of temporary files: overlays, disk exports, the tables of archives."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sendense_restore.errors import NoRoom

RESERVE = 64 << 20
"""What is left free: overlays grow while journals are replayed."""

_NO_SPACE = os.strerror(errno.ENOSPC)


def free(directory: Path) -> int:
    """Returns the bytes that are free below a directory."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def require(directory: Path, size: int = 0) -> None:
    """Refuses to begin what cannot fit.

    Args:
        directory: Where it is to be written.
        size: Bytes that it will take, besides the reserve.

    Raises:
        NoRoom: There is not enough.
    """
    available = free(directory)
    if available < size + RESERVE:
        raise NoRoom(directory, size + RESERVE, available)


def is_out(error: Exception) -> bool:
    """Whether an error, or what a program said, means that there is no space left."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _NO_SPACE in str(error)
