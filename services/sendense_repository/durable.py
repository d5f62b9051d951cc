"""Files that a power cut cannot tear: written beside their name, synced, put in place, the directory synced.

Every function blocks for the disk; call them in a thread. None of them ever replaces a file unless its name says so.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

TEMPORARY_PREFIX = ".new-"
"""Names that begin so are leftovers of a crash: never read, always safe to remove."""


def sync_directory(path: Path) -> None:
    """Makes the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes a file's content durable. An error means that it may be lost for good: a second try proves nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(root: Path, path: Path) -> None:
    """Makes `path` below the existing `root`, durably, readable by us only."""
    missing = []
    here = path
    while here != root and not here.is_dir():
        missing.append(here)
        here = here.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o750, exist_ok=True)
        sync_directory(directory.parent)


def write_new(path: Path, content: bytes, *, mode: int = 0o640) -> None:
    """Writes a new file, whole or not at all.

    Raises:
        FileExistsError: There is one of that name; it was not touched.
    """
    temporary = _write_beside(path, content, mode)
    try:
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def replace(path: Path, content: bytes, *, mode: int = 0o640) -> None:
    """Writes a file in place of the one of that name, if any: readers see the old or the new one, whole."""
    temporary = _write_beside(path, content, mode)
    temporary.replace(path)
    sync_directory(path.parent)


def move_new(source: Path, target: Path) -> None:
    """Gives a file another name in its directory, and never replaces one (RENAME_NOREPLACE).

    A link and an unlink, since renameat2's flag is missing on network file systems. A crash between the two leaves
    both names for one file; calling it again finishes.

    Raises:
        FileExistsError: Another file has the name.
        FileNotFoundError: There is no source.
    """
    try:
        target.hardlink_to(source)
    except FileExistsError:
        if not source.samefile(target):
            raise
    sync_directory(target.parent)
    source.unlink()
    sync_directory(target.parent)


def remove(path: Path) -> bool:
    """Removes a file if it is there, and tells whether it was. The caller syncs the directory when all are gone."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
