"""Trees of random files that are written to guests' file systems, and compared with what comes back as tar."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from restore_images import put, sync_directory

KIB = 1 << 10
_SIZES = ([0, 1, 100, 4095, 4096, 4097, 30 * KIB, 150 * KIB], [9, 9, 9, 9, 9, 9, 9, 2])
"""Sizes of files, and how often each is drawn."""
_LETTERS = "abcxyzABC019 _-.,;'äß€ж漢%#&()"
_UNIX_ONLY = ["\n", "\\", '"', "\udcff", "\udce9", "\x1b", "*", "?", ":", "|", "<"]


@dataclass
class Source:
    """What a file system must give back.

    Attributes:
        files: For each path its SHA-256 and size.
        links: For each symbolic link where it leads.
        hard: Further names of files, and the first name of each.
        xattrs: For each path its user attributes.
        modes: For each path its permission bits, where the file system keeps them.
        gone: Paths that were deleted.
    """

    files: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)
    hard: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, dict[str, bytes]] = field(default_factory=dict)
    modes: dict[bytes, int] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)


def fill(root: Path, seed: int, count: int, *, unix: bool = True, links: bool = True, sparse_bytes: int = 0) -> Source:
    """Writes a tree so that it survives a crash, deletes some of it, and leaves further writes in flight.

    Args:
        root: Where the file system is mounted.
        seed: The same seed gives the same tree.
        count: Files.
        unix: The file system keeps any name, modes, owners and xattrs.
        links: It keeps hard and symbolic links.
        sparse_bytes: Size of a sparse file.
    """
    chosen = random.Random(seed)
    source = Source()
    directories = [b""]
    for _ in range(max(count // 20, 2)):
        name = _name(chosen, unix=unix)
        path = (chosen.choice(directories) + b"/" + name).lstrip(b"/")
        if path.count(b"/") < 5 and path.lower() not in {known.lower() for known in directories}:
            directories.append(path)
            (root / os.fsdecode(path)).mkdir()
    for number in range(count):
        path = (chosen.choice(directories) + b"/f%d" % number + _name(chosen, unix=unix)).lstrip(b"/")
        content = chosen.randbytes(chosen.choices(*_SIZES)[0])
        _write(source, root, path, content)
        if unix and number % 9 == 0:
            source.modes[path] = chosen.choice([0o600, 0o4755, 0o640, 0o000])
            (root / os.fsdecode(path)).chmod(source.modes[path])
            source.xattrs[path] = {"note": chosen.randbytes(8).hex().encode()}
            os.setxattr(root / os.fsdecode(path), "user.note", source.xattrs[path]["note"])
    if links:
        for number, path in enumerate(sorted(source.files)[: count // 20]):
            name = b"hard%d" % number
            os.link(root / os.fsdecode(path), root / os.fsdecode(name))
            source.files[name] = source.files[path]
            source.hard[name] = path
            source.links[b"soft%d" % number] = b"../" * number + path
            (root / f"soft{number}").symlink_to(os.fsdecode(b"../" * number + path))
    if sparse_bytes:
        _write_sparse(source, root, sparse_bytes)
    _sync(root)
    _change_after_the_sync(source, root, chosen, unix=unix)
    return source


def _change_after_the_sync(source: Source, root: Path, chosen: random.Random, *, unix: bool) -> None:
    """What only the journal knows when the disk is copied: files fsynced by themselves, deletions, writes in flight."""
    for number in range(40):
        path = b"late%d" % number + _name(chosen, unix=unix)
        content = chosen.randbytes(1 + chosen.randrange(40 * KIB))
        put(root, path, content)
        source.files[path] = (hashlib.sha256(content).hexdigest(), len(content))
    victims = [path for path in sorted(source.files) if path.startswith(b"f") and b"/" not in path][:20]
    for path in victims:
        (root / os.fsdecode(path)).unlink()
        for known in (source.files, source.modes, source.xattrs):
            known.pop(path, None)
        source.hard = {name: first for name, first in source.hard.items() if first != path}
        source.gone.add(path)
    sync_directory(root)
    (root / "in flight").mkdir()
    for number in range(30):  # whether these are there is nobody's promise
        (root / "in flight" / str(number)).write_bytes(b"x" * 5000)


def _sync(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    try:
        os.sync() if not hasattr(os, "syncfs") else os.syncfs(fd)
    finally:
        os.close(fd)


def _write(source: Source, root: Path, path: bytes, content: bytes) -> None:
    (root / os.fsdecode(path)).write_bytes(content)
    source.files[path] = (hashlib.sha256(content).hexdigest(), len(content))


def _write_sparse(source: Source, root: Path, size: int) -> None:
    digest = hashlib.sha256()
    pieces = {0: b"begin", size // 2 // 4096 * 4096 + 5: b"middle" * 1000, size - 3: b"end"}
    position = 0
    with (root / "sparse").open("wb") as file:
        file.truncate(size)
        for offset, content in sorted(pieces.items()):
            while position < offset:
                part = bytes(min(offset - position, 4 << 20))
                digest.update(part)
                position += len(part)
            file.seek(offset)
            file.write(content)
            digest.update(content)
            position += len(content)
    source.files[b"sparse"] = (digest.hexdigest(), size)


def _name(chosen: random.Random, *, unix: bool) -> bytes:
    letters = [*_LETTERS, *(_UNIX_ONLY if unix else [])]
    if not unix:
        # Not at an end of a name on FAT and NTFS; and mtools writes what old code pages lack as something like it.
        letters = [letter for letter in letters if letter not in " .€ж漢"]
    return os.fsencode("".join(chosen.choices(letters, k=chosen.randrange(3, 30))))


def assert_tar_equals(tar: Path, source: Source, *, unix: bool = True, links: bool = True) -> None:
    """Compares a downloaded tar with its source, by SHA-256."""
    found: dict[bytes, tuple[str, int]] = {}
    soft: dict[bytes, bytes] = {}
    members: dict[bytes, tarfile.TarInfo] = {}
    with tarfile.open(tar, encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            path = os.fsencode(member.name).removeprefix(b"./")
            if path.startswith((b"in flight", b"lost+found", b"tricks")) or path in (b".", b""):
                continue
            members[path] = member
            if member.issym():
                soft[path] = os.fsencode(member.linkname)
            elif member.islnk():
                found[path] = found[os.fsencode(member.linkname).removeprefix(b"./")]
            elif member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                found[path] = (_digest(file.read), member.size)
    more, fewer = sorted(found.keys() - source.files.keys()), sorted(source.files.keys() - found.keys())
    assert not more, f"there is more than was written: {more[:5]}; missing: {fewer[:5]}"
    assert not fewer, f"missing: {fewer[:5]}"
    wrong = [path for path in source.files if found[path] != source.files[path]]
    assert wrong == []
    assert not source.gone & found.keys()
    if links:
        assert soft == source.links
        for name, first in source.hard.items():  # whichever comes first has the content
            assert members[name].islnk() or members[first].islnk(), name
    if unix:
        _assert_attributes(members, source)


def _assert_attributes(members: Mapping[bytes, tarfile.TarInfo], source: Source) -> None:
    for path, mode in source.modes.items():
        assert stat.S_IMODE(members[path].mode) == mode, path
    for path, attributes in source.xattrs.items():
        if members[path].islnk():  # its first name has them
            continue
        for name, value in attributes.items():
            assert members[path].pax_headers[f"SCHILY.xattr.user.{name}"] == value.decode(), path


def some_pieces(tar: Path, source: Source, seed: int, count: int) -> list[tuple[bytes, int, bytes]]:
    """Draws files of a downloaded tar, the largest among them: path, offset and content of a piece of each."""
    chosen = random.Random(seed)
    largest = max(source.files, key=lambda path: source.files[path][1])
    filled = sorted(path for path, (_, size) in source.files.items() if size)
    paths, found = {largest, *chosen.sample(filled, count)}, []
    with tarfile.open(tar, encoding="utf-8", errors="surrogateescape") as archive:
        for path in sorted(paths):
            file = archive.extractfile("./" + os.fsdecode(path))
            assert file is not None
            size = source.files[path][1]
            offset = size // 2 if path == largest else chosen.randrange(size)
            file.seek(offset)
            found.append((path, offset, file.read(chosen.randrange(1, 300 * KIB))))
    return found


def _digest(read: Callable[[int], bytes]) -> str:
    digest = hashlib.sha256()
    while part := read(1 << 20):
        digest.update(part)
    return digest.hexdigest()
