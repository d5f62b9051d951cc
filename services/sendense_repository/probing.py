"""Tries whether a directory can keep backups: each trial by name, leaving nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sendense_repository import durable

_CLOCK_SECONDS = 60.0
"""A file server whose clock is further off than this dates files wrongly for everybody who looks at them."""

_SPACE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial went; `finding` says what was found, also when it passed."""

    name: str
    passed: bool
    finding: str


class TrialFailed(Exception):
    """The directory lacks what a trial needs; the message says what."""


def try_directory(root: Path) -> list[Trial]:
    """Tries everything and returns how each trial went. Blocks for the disk."""
    results = []
    try:
        with tempfile.TemporaryDirectory(prefix=durable.TEMPORARY_PREFIX, dir=root) as name:
            results = [_try(trial_name, trial, Path(name)) for trial_name, trial in _TRIALS]
    except OSError as error:
        results.append(Trial("write", passed=False, finding=f"nothing can be written: {error.strerror or error}"))
    return results


def _try(name: str, trial: Callable[[Path], str], directory: Path) -> Trial:
    try:
        return Trial(name, passed=True, finding=trial(directory))
    except TrialFailed as error:
        return Trial(name, passed=False, finding=str(error))
    except OSError as error:
        return Trial(name, passed=False, finding=f"{error.strerror or error}")


def _space(directory: Path) -> str:
    path = directory / "space"
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, _SPACE_BYTES)
    status = os.statvfs(directory)
    return f"{status.f_bavail * status.f_frsize} bytes are free"


def _fsync(directory: Path) -> str:
    begin = time.monotonic()
    durable.write_new(directory / "synced", b"synced")
    if (directory / "synced").read_bytes() != b"synced":
        raise TrialFailed("what was written is not what is read")
    return f"a small file was durable after {(time.monotonic() - begin) * 1000:.0f} ms"


def _rename(directory: Path) -> str:
    first, second = directory / "first", directory / "second"
    durable.write_new(first, b"first")
    durable.move_new(first, second)
    durable.write_new(first, b"other")
    try:
        durable.move_new(first, second)
    except FileExistsError:
        pass
    else:
        raise TrialFailed("its file system replaces a file that a new name must not replace")
    durable.replace(second, b"replaced")
    if second.read_bytes() != b"replaced":
        raise TrialFailed("what was written is not what is read")
    return "names are never replaced by accident"


def _lock(directory: Path) -> str:
    path = directory / "locked"
    durable.write_new(path, b"")
    with path.open("r+b") as one, path.open("r+b") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EAGAIN}:
                raise
        else:
            raise TrialFailed("its file system does not keep locks")
    return "a second lock is refused"


def _clock(directory: Path) -> str:
    path = directory / "dated"
    durable.write_new(path, b"dated")
    off = path.stat().st_mtime - time.time()
    if abs(off) > _CLOCK_SECONDS:
        raise TrialFailed(f"its clock is {off:.0f} s off ours")
    return f"its clock is {abs(off):.1f} s off ours"


_TRIALS: tuple[tuple[str, Callable[[Path], str]], ...] = (
    ("space", _space),
    ("fsync", _fsync),
    ("rename", _rename),
    ("lock", _lock),
    ("clock", _clock),
)
