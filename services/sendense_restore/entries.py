"""What a directory holds under one name, as it is without following links. Functions block: run them in a thread."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.errors import FileUnreadable
from sendense_restore.paths import GuestPath, located, open_directory

_BLOCK = 512  # st_blocks counts these, whatever the file system's are


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
        accessed_ns: At which it was last read.
        changed_ns: At which content or owner, mode, links were last changed.
        allocated_bytes: What it takes on the guest's disk.
        links: How many names it has.
        link_target: Where a symbolic link leads; empty for anything else.
    """

    name: bytes
    kind: str
    size_bytes: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    modified_ns: int = 0
    accessed_ns: int = 0
    changed_ns: int = 0
    allocated_bytes: int = 0
    links: int = 0
    link_target: bytes = b""


def entry_of(name: bytes, status: os.stat_result, link_target: bytes) -> Entry:
    """Returns the entry of a file that was looked at."""
    return Entry(
        name=name,
        kind=kind_of(status.st_mode),
        size_bytes=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modified_ns=status.st_mtime_ns,
        accessed_ns=status.st_atime_ns,
        changed_ns=status.st_ctime_ns,
        allocated_bytes=status.st_blocks * _BLOCK,
        links=status.st_nlink,
        link_target=link_target,
    )


def look(directory: int, name: bytes) -> Entry:
    """Looks at a name in a directory; one that cannot be looked at is `other` with nothing known.

    Args:
        directory: Descriptor of the directory.
        name: The name.
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
    except OSError:
        # A damaged inode must not hide its neighbours: the name is shown, its content cannot be asked for.
        return Entry(name, "other")
    return entry_of(name, status, target)


def look_at(root: Path, path: GuestPath) -> Entry:
    """Looks at one path; a symbolic link at its end is described itself.

    Raises:
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
    """
    with located(root, path, follow=False) as (fd, status):
        target = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
        return entry_of(path.name, status, target)


def names_in(root: Path, path: GuestPath, most: int = 100_000) -> list[bytes]:
    """Returns names of a directory, at most so many.

    Raises:
        NotADirectory: It is something else.
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
    """
    directory = open_directory(root, path)
    try:
        with os.scandir(directory) as found:
            return [os.fsencode(entry.name) for entry in itertools.islice(found, most)]
    except OSError as error:
        raise FileUnreadable(path.display, error.strerror or str(error)) from error
    finally:
        os.close(directory)


def kind_of(mode: int) -> str:
    """Returns the word for a file's kind."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"
