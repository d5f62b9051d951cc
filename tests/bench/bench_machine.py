"""The machine's own limits on two cores, which no copy can beat: memory, a socket between two processes, the disk."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

from figures import GIB, MIB, Row, run_script, seconds

RUNS = 5
SIZE = 512 * MIB
BLOCK = MIB


def rows() -> list[Row]:
    """Measures all limits."""
    return [
        _rate("memcpy, one thread", [_memory() for _ in range(RUNS)]),
        _rate("Unix socket, one process to another, 1 MiB sends", [_socket() for _ in range(RUNS)]),
        _rate("plain file copy in memory (tmpfs, pages resident)", _file_copy()),
        _rate("disk, direct writes of 1 MiB with a final sync", [_disk() for _ in range(RUNS)]),
    ]


def _rate(name: str, taken: list[float]) -> Row:
    return Row.of(name, [SIZE / GIB / each for each in taken], unit="GiB/s")


def _memory() -> float:
    source, target = bytearray(os.urandom(MIB)) * 64, bytearray(64 * MIB)

    def copy() -> None:
        for _ in range(SIZE // len(source)):
            target[:] = source

    copy()
    return seconds(copy)


def _socket() -> float:
    ours, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=_send, args=(theirs,))
    child.start()
    theirs.close()
    buffer = bytearray(BLOCK)
    ours.recv_into(buffer, 1)

    def receive() -> None:
        while ours.recv_into(buffer):
            pass

    taken = seconds(receive)
    child.join()
    ours.close()
    return taken


def _send(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
    data = bytes(BLOCK)
    end.sendall(b"!")
    for _ in range(SIZE // BLOCK):
        end.sendall(data)


def _file_copy() -> list[float]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-machine-") as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        source.write_bytes(os.urandom(MIB) * (SIZE // MIB))
        target.write_bytes(bytes(SIZE))
        buffer = memoryview(bytearray(BLOCK))

        def copy() -> None:
            with source.open("rb", buffering=0) as one, target.open("r+b", buffering=0) as other:
                while one.readinto(buffer):
                    other.write(buffer)

        return [seconds(copy) for _ in range(RUNS)]


def _disk() -> float:
    block = mmap.mmap(-1, BLOCK)  # aligned, as direct I/O wants it
    block.write(os.urandom(BLOCK))
    with tempfile.NamedTemporaryFile(dir=Path.cwd() / "build", prefix="bench-disk-") as file:
        fd = os.open(file.name, os.O_WRONLY | os.O_DIRECT)
        try:

            def write() -> None:
                for number in range(SIZE // BLOCK):
                    os.pwrite(fd, block, number * BLOCK)
                os.fsync(fd)

            write()
            return seconds(write)
        finally:
            os.close(fd)


if __name__ == "__main__":
    run_script(__doc__, rows)
