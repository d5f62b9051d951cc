"""Shows two directories of this host over FUSE as if they were a micro-VM's volumes: a process of its own.

A process that reads its own FUSE mount can wait for itself for ever. Arguments: the directory that holds `one` (whose
file system tells holes) and `two`, where to show it, and a log of what the tree asked its "micro-VM".
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sendense_restore.fuse_server import FuseServer
from sendense_restore.guestfs_blocks import BlockMaps
from sendense_restore.guestfs_calls import MOST_BYTES, FileFacts
from sendense_restore.guestfs_tree import GuestTree, ShownVolume


class HostListing:
    """Names of a directory, as `guestfs_calls.Listing` gives them."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self._names = names
        self.count = len(names)

    def at(self, index: int) -> tuple[bytes, bytes, int]:
        return self._names[index], b"u", 7

    def close(self) -> None:
        self.count = -1


class HostCalls:
    """Answers as a micro-VM whose volumes are directories below one of this host; counts what it is asked."""

    def __init__(self, top: Path, log: Path) -> None:
        self._top = os.fsencode(top)
        self._log = log.open("a", buffering=1)

    def _note(self, call: str) -> None:
        self._log.write(f"{call}\n")

    def entries(self, directory: bytes) -> HostListing:
        self._note("entries")
        return HostListing([b".", b"..", *os.listdir(self._top + directory)])  # noqa: PTH208 - bytes

    def look(self, path: bytes) -> FileFacts:
        self._note("look")
        return self._look(path)

    def _look(self, path: bytes) -> FileFacts:
        s = os.lstat(self._top + path)
        times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
        ids = (s.st_uid, s.st_gid, s.st_rdev)
        return FileFacts(s.st_dev, s.st_ino, s.st_mode, s.st_nlink, *ids, s.st_size, s.st_blocks, *times)

    def look_at_all(self, directory: bytes, names: Sequence[bytes]) -> list[FileFacts | None]:
        return [self._look(directory + b"/" + name) for name in names]

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        path = self._top + path
        names = os.listxattr(path, follow_symlinks=False)
        return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}

    def xattrs_of_all(self, directory: bytes, names: Sequence[bytes]) -> list[dict[bytes, bytes]]:
        self._note("xattrs_of_all")
        return [self.xattrs(directory + b"/" + name) for name in names]

    def read_link(self, path: bytes) -> bytes:
        return os.readlink(self._top + path)  # noqa: PTH115 - bytes

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        self._note("read")
        with open(self._top + path, "rb") as file:  # noqa: PTH123 - a path in bytes
            file.seek(offset)
            return file.read(min(size, MOST_BYTES))

    def volume_facts(self, mount_point: str) -> dict[str, int]:
        facts = os.statvfs(os.fsdecode(self._top) + mount_point)
        return {name.removeprefix("f_"): getattr(facts, name) for name in dir(facts) if name.startswith("f_")}

    def run(self, command: bytes) -> bytes:
        self._note("run")
        here = command.replace(b"/sysroot", self._top)
        return subprocess.run(["sh", "-c", here], capture_output=True, check=True).stdout


def main() -> None:
    """Serves until the directory is unmounted or standard input ends."""
    source, root, log = (Path(argument) for argument in sys.argv[1:])
    calls = HostCalls(source, log)
    volumes = [ShownVolume("one", tells_holes=True), ShownVolume("two")]
    server = FuseServer(GuestTree(calls, BlockMaps(calls, {}), volumes), root)  # type: ignore[arg-type]
    os.write(sys.stdout.fileno(), b"shown\n")
    server.serve(sys.stdin.fileno())
    server.close()


if __name__ == "__main__":
    main()
