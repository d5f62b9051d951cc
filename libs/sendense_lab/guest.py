"""What the guest of a VM does: writing bytes, and putting, reading and removing files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sendense_lab import layers, writes
from sendense_lab.content import MIB, ByteStream
from sendense_lab.disknames import DiskName
from sendense_lab.errors import InvalidRequestError
from sendense_lab.guestdisks import guest_session
from sendense_lab.guestpaths import GuestPaths
from sendense_lab.machine import Machine
from sendense_lab.records import DiskRecord


def write_bytes(
    machine: Machine, disk: DiskName, offset: int, source: Path | None, seed: int, length: int, *, zero: bool = False
) -> int:
    """Writes a byte range of a disk, as a program using the raw device would.

    Args:
        machine: The VM.
        disk: The disk.
        offset: First byte.
        source: File with the bytes; None takes `length` bytes of the seed's stream, or zeros.
        seed: Seed of the bytes.
        length: How many.
        zero: Write zeros in place of the seed's stream.

    Returns:
        Bytes written.

    Raises:
        InvalidRequestError: The range leaves the disk, or the VM is powered off.
    """
    with machine.lock:
        machine.require_running()
        target = machine.disk_at(disk)
        size = source.stat().st_size if source else length
        if offset < 0 or size <= 0 or offset + size > target.capacity:
            raise InvalidRequestError(f"{size} bytes at {offset} do not lie inside the disk of {target.capacity} bytes")
        if source:
            with source.open("rb") as reader:
                writes.write(machine, target, offset, size, _read_exactly(reader, size))
        else:
            chunks = layers.zeros(size) if zero else ByteStream("write", seed).chunks(size)
            writes.write(machine, target, offset, size, chunks)
        return size


def _read_exactly(reader: BinaryIO, size: int) -> Iterator[bytes]:
    """Yields the file's bytes, no more than there were when it was looked at."""
    while size > 0 and (chunk := reader.read(min(size, MIB))):
        size -= len(chunk)
        yield chunk


def add_to_fstab(machine: Machine, disk: DiskRecord) -> None:
    """Lets the guest mount a disk that was added, if it has a root."""
    if any(other.mountpoint == "/" for other in machine.record.disks):
        with guest_session(machine) as session:
            paths = GuestPaths(machine, session, writable=True)
            with paths.resolve("/etc/fstab").open("a") as table:
                table.write(f"UUID={disk.filesystem_uuid} {disk.mountpoint} {disk.filesystem} defaults 0 2\n")
            # Where it is to be mounted, on the root: this session's paths follow the old table.
            paths.resolve(disk.mountpoint, create_parents=True).mkdir(exist_ok=True)


def put(machine: Machine, local: Path, path: str) -> int:
    """Puts a local file into the guest, making folders as needed; returns its bytes."""
    with guest_session(machine) as session:
        target = GuestPaths(machine, session, writable=True).resolve(path, create_parents=True)
        if target.is_dir():
            raise InvalidRequestError(f"{path} is a directory in the guest")
        shutil.copyfile(local, target)
        return target.stat().st_size


def remove(machine: Machine, path: str) -> int:
    """Removes a file or a whole directory of the guest; returns the number of files that went."""
    with guest_session(machine) as session:
        target = GuestPaths(machine, session, writable=True).resolve(path, follow_last=False)
        if target in (session.root(index, writable=False) for index in session.touched):
            raise InvalidRequestError(f"{path} is the root of a file system")
        if not target.is_dir() or target.is_symlink():
            target.unlink()
            return 1
        count = sum(len(files) for _, _, files in os.walk(target))
        shutil.rmtree(target)
        return count


def read(machine: Machine, path: str, output: Path) -> int:
    """Copies a file of the guest to a local one; returns its bytes. Nothing is written in the guest."""
    with guest_session(machine, read_only=True) as session:
        source = GuestPaths(machine, session, writable=False).resolve(path)
        if not source.is_file():
            raise InvalidRequestError(f"{path} is not a regular file")
        shutil.copyfile(source, output)
        return output.stat().st_size
