"""Disks whose content is known: bytes with a seed, images made from them, and what an image reads as."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path


def content(seed: int, size: int, zero_runs: list[tuple[int, int]] | None = None) -> bytearray:
    """Returns random bytes, with the given (offset, length) runs zero."""
    data = bytearray(random.Random(seed).randbytes(size))
    for offset, length in zero_runs or []:
        length = max(0, min(length, size - offset))
        data[offset : offset + length] = bytes(length)
    return data


def write_sparse(path: Path, data: bytes | bytearray, block: int = 4096) -> None:
    """Writes a raw disk with holes where whole blocks are zero."""
    with path.open("wb") as stream:
        for start in range(0, len(data), block):
            piece = data[start : start + block]
            if any(piece):
                stream.seek(start)
                stream.write(piece)
        stream.truncate(len(data))


def make_qcow2(path: Path, size: int, backing: Path | None = None) -> None:
    """Creates an empty qcow2 image; `backing` is a raw file."""
    below = [] if backing is None else ["-b", str(backing), "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), str(size)], check=True)


def read_qcow2(path: Path, scratch: Path) -> bytes:
    """Returns what an image reads as."""
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(scratch)], check=True)
    return scratch.read_bytes()
