"""What the guests' file systems hold: a small but believable Linux root and many files of incompressible bytes.

All of it follows from the seed, so a run can be repeated.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sendense_lab.errors import LabError

KIB, MIB = 1024, 1024 * 1024
FILL = 0.57
"""Share of a disk's capacity that its files take."""
SMALL_SHARE = 0.25
"""Most that the small files may take of it."""
CHUNK = 4 * MIB
_ZEROES = bytes(CHUNK)


class ByteStream:
    """An endless, repeatable stream of incompressible bytes (AES-CTR key stream of a seed)."""

    def __init__(self, *seed: object) -> None:
        key = hashlib.sha256("\0".join(str(part) for part in seed).encode()).digest()
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def chunks(self, length: int) -> Iterator[bytes]:
        """Yields the next `length` bytes in pieces."""
        while length > 0:
            piece = min(length, CHUNK)
            yield self._cipher.update(memoryview(_ZEROES)[:piece])
            length -= piece

    def read(self, length: int) -> bytes:
        """Returns the next `length` bytes."""
        return b"".join(self.chunks(length))


class Ciphertext:
    """What an encrypted VM's disk looks like to those who read its file: the bytes under a key they lack."""

    def __init__(self, *seed: object) -> None:
        self._key = hashlib.sha256("\0".join(str(part) for part in ("disk key", *seed)).encode()).digest()

    def of(self, plain: bytes, offset: int) -> bytes:
        """Returns the bytes of the disk at an offset as they are in the file."""
        counter, skipped = divmod(offset, 16)
        stream = Cipher(algorithms.AES(self._key), modes.CTR(counter.to_bytes(16, "big"))).encryptor()
        stream.update(bytes(skipped))
        return stream.update(plain)


def write_file(path: Path, size: int, stream: ByteStream) -> None:
    """Creates a file of `size` bytes from the stream."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for chunk in stream.chunks(size):
            os.write(descriptor, chunk)
    finally:
        os.close(descriptor)


def populate(root: Path, capacity: int, small_files: int, seed: int, disk: int, stopping: threading.Event) -> int:
    """Fills a mounted, empty file system.

    Args:
        root: Where it is mounted.
        capacity: Size of the disk, bytes.
        small_files: How many files of 1 to 64 KiB; fewer on a disk too small for them.
        seed: The VM's seed.
        disk: Index of the disk.
        stopping: When set, the work is given up.

    Returns:
        Bytes in the files written.

    Raises:
        LabError: `stopping` was set.
    """
    rng = random.Random(f"{seed}/{disk}")
    stream = ByteStream("content", seed, disk)
    budget = int(capacity * FILL)
    count = min(small_files, capacity // (256 * KIB))
    largest_small = max(KIB, min(64 * KIB, int(2 * budget * SMALL_SHARE / max(count, 1))))
    written = 0
    for number in range(count):
        directory = root / "srv" / f"app{number % 17:02d}" / f"part{number % 101:03d}"
        if number < 17 * 101:
            directory.mkdir(parents=True, exist_ok=True)
        size = rng.randint(KIB, largest_small)
        write_file(directory / f"item-{number:05d}.dat", size, stream)
        written += size
    smallest, largest = min(MIB, capacity // 64), min(16 * MIB, capacity // 32)
    library = root / "srv" / "library"
    library.mkdir(parents=True, exist_ok=True)
    number = 0
    while budget - written > smallest:
        if stopping.is_set():
            raise LabError("The lab is stopping", reason="STOPPING")
        size = min(rng.randint(smallest, largest), budget - written)
        shelf = library / f"shelf{number % 7}"
        shelf.mkdir(exist_ok=True)
        write_file(shelf / f"volume-{number:04d}.bin", size, stream)
        written += size
        number += 1
    return written


def write_root(root: Path, name: str, seed: int, mounts: Sequence[tuple[str, str, str]]) -> None:
    """Writes the files that make disk 0 a guest's root.

    Args:
        root: Where the file system is mounted.
        name: The guest's host name.
        seed: The VM's seed.
        mounts: (file system UUID, mount point, type) of every disk, the root first.
    """
    for directory in ("boot", "dev", "etc", "home/admin", "proc", "run", "sys", "tmp", "usr/bin", "var/log"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for _, mountpoint, _ in mounts[1:]:
        (root / mountpoint.lstrip("/")).mkdir(parents=True, exist_ok=True)
    www = root / "var/www/html"
    www.mkdir(parents=True)
    texts = {
        "etc/fstab": "".join(
            f"UUID={uuid} {mountpoint} {kind} defaults 0 {1 if mountpoint == '/' else 2}\n"
            for uuid, mountpoint, kind in mounts
        ),
        "etc/hostname": f"{name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\n'
        'VERSION_ID="12"\nVERSION="12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n',
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nadmin:x:1000:1000::/home/admin:/bin/bash\n",
        "etc/group": "root:x:0:\nadmin:x:1000:\n",
        "home/admin/notes.txt": f"Lab guest {name}, seed {seed}.\n",
        "var/log/boot.log": "".join(f"[{n:10.6f}] lab guest {name} step {n}\n" for n in range(200)),
        "var/www/html/index.php": f"<?php\n// {name}\n$seed = {seed};\nphpinfo();\n",
        "var/www/html/style.css": "body { font-family: sans-serif }\n",
    }
    for path, text in texts.items():
        (root / path).write_text(text)
    stream = ByteStream("www", seed)
    (www / "images").mkdir()
    for number in range(8):
        write_file(www / "images" / f"photo-{number}.jpg", 200 * KIB, stream)
    (www / "current").symlink_to("index.php")
    (root / "var/run").symlink_to("/run")
