"""Whether a qemu process has an image open, seen from qemu's own locks, without opening the image.

qemu holds shared open-file-description locks on bytes 100 to 163 (what it does) and 200 to 263 (what it does not let
others do) of each image (qemu's block/file-posix.c). Asking for a write lock over both ranges names any of them.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
_FIRST_BYTE, _LENGTH = 100, 200


def is_open_in_qemu(path: Path) -> bool:
    """Tells whether any qemu process reads or writes the image now; False when there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_BYTE, _LENGTH, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    finally:
        os.close(descriptor)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
