"""The FUSE server over directories of this host in place of a micro-VM: the kernel's own view of them is the same."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import restore_fuse_host
from restore_images import run


@dataclass(frozen=True)
class Shown:
    """A source directory, where it is shown, and the log of what its calls were asked."""

    source: Path
    root: Path
    log: Path

    def asked(self, call: str) -> int:
        return self.log.read_text().splitlines().count(call)


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    source, root, log = tmp_path / "source", tmp_path / "shown", tmp_path / "asked"
    for directory in (source / "one", source / "two", root):
        directory.mkdir(parents=True)
    command = [sys.executable, restore_fuse_host.__file__, source, root, log]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"shown\n"
            yield Shown(source, root, log)
        finally:
            subprocess.run(["umount", "--lazy", root], check=False)
            server.stdin.close()
            server.wait(60)
        assert server.returncode == 0


def test_the_tree_is_the_same_with_every_attribute(shown: Shown, tmp_path: Path) -> None:
    one = shown.source / "one"
    for number in range(1200):
        (one / f"f{number}").write_bytes(os.urandom(number))
    (one / "deep" / "er").mkdir(parents=True)
    (one / "deep" / os.fsdecode(b"caf\xe9 \n")).write_bytes(b"odd")
    (one / "soft").symlink_to("/etc/passwd")
    os.link(one / "f7", one / "deep" / "hard")
    os.mkfifo(one / "fifo")
    (one / "f9").chmod(0o4711)
    os.chown(one / "f9", 1234, 5678)
    os.utime(one / "f10", ns=(-5_000_000_001, 1_234_567_890_123_456_789))
    os.setxattr(one / "f11", "user.note", b"kept\0")
    listing = [f"{p.relative_to(one)}" for p in sorted(one.rglob("*"))]
    assert [f"{p.relative_to(shown.root / 'one')}" for p in sorted((shown.root / "one").rglob("*"))] == listing
    for name in listing:
        was, is_ = os.lstat(one / name), os.lstat(shown.root / "one" / name)
        for field in ("mode", "nlink", "uid", "gid", "size", "blocks", "mtime_ns", "ctime_ns"):
            assert getattr(is_, f"st_{field}") == getattr(was, f"st_{field}"), (name, field)
        if stat.S_ISREG(was.st_mode):
            assert (shown.root / "one" / name).read_bytes() == (one / name).read_bytes(), name
    assert (shown.root / "one" / "soft").readlink() == Path("/etc/passwd")
    assert os.listxattr(shown.root / "one" / "f11") == ["user.note"]
    assert os.getxattr(shown.root / "one" / "f11", "user.note") == b"kept\0"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(shown.root / "one" / "f11", "user.none")
    assert shown.asked("look") < 30, "files are looked at one by one"
    with pytest.raises(FileNotFoundError):
        (shown.root / "one" / "none").stat()
    with pytest.raises(OSError, match="Read-only"):
        (shown.root / "one" / "f1").write_bytes(b"x")
    assert os.statvfs(shown.root / "one").f_blocks == os.statvfs(one).f_blocks


def test_hard_links_are_one_file_and_never_one_with_another_volumes(shown: Shown) -> None:
    for volume in ("one", "two"):
        (shown.source / volume / "a").write_bytes(b"x")
        os.link(shown.source / volume / "a", shown.source / volume / "b")
    inodes = [(shown.root / volume / name).stat().st_ino for volume in ("one", "two") for name in "ab"]
    assert inodes[0] == inodes[1] != inodes[2] == inodes[3]
    tar = shown.source / "x.tar"
    run("tar", "--create", "--file", tar, "--directory", shown.root, "one", "two")
    with tarfile.open(tar) as archive:
        assert sorted(m.linkname.partition("/")[0] for m in archive if m.islnk()) == ["one", "two"]


def test_a_sparse_file_is_found_sparse_and_read_without_its_holes(shown: Shown) -> None:
    sparse = shown.source / "one" / "sparse"
    with sparse.open("wb") as file:
        file.truncate(3 << 30)
        file.seek(1 << 30)
        file.write(b"middle")
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(shown.root / "one" / "sparse", os.O_RDONLY)
    try:
        assert (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)) == (1 << 30, 0)
        hole = os.lseek(fd, 1 << 30, os.SEEK_HOLE)
        assert os.pread(fd, 8, (1 << 30) - 1) == b"\0middle\0"
        assert os.pread(fd, 1 << 20, 2 << 30) == bytes(1 << 20)
        with pytest.raises(OSError, match="No such device"):
            os.lseek(fd, hole, os.SEEK_DATA)
    finally:
        os.close(fd)
    assert shown.asked("run") == 1
    assert shown.asked("read") < 5
    tar = shown.source / "x.tar"
    run("tar", "--create", "--sparse", "--file", tar, "--directory", shown.root, "one/sparse")
    assert tar.stat().st_size < 1 << 20


def test_a_file_whose_holes_nobody_tells_is_read_ahead(shown: Shown) -> None:
    content = os.urandom(5 << 20)
    (shown.source / "two" / "big").write_bytes(content)
    assert (shown.root / "two" / "big").read_bytes() == content
    assert shown.asked("read") == 3
    assert shown.asked("run") == 0
