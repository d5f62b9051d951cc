"""Runs one qemu program to its end, under limits, with nothing left behind.

What always holds: programs get argument lists, the limits are set by prlimit(1) before the program starts
(a `preexec_fn` is not safe in a process with threads), output is bounded, and a program that is cancelled or
overstays its deadline is killed and reaped before the caller goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sendense_qemu.errors import QemuImgError

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What one qemu program may use; going over it ends the program, never the service.

    Attributes:
        address_space_bytes: RLIMIT_AS. `qemu-img check` holds a refcount of 2 bytes for each cluster in
            memory: 1 GiB for an image of 32 TiB with clusters of 64 KiB.
        cpu_seconds: RLIMIT_CPU.
        open_files: RLIMIT_NOFILE; each layer of a chain needs a few.
        timeout_seconds: Wall-clock deadline, after which the program is killed.
        output_bytes: The longest output (each of stdout and stderr) that is read.
    """

    address_space_bytes: int = 4 * GIB
    cpu_seconds: int = 60
    open_files: int = 1024
    timeout_seconds: float = 120.0
    output_bytes: int = 512 * MIB


QUICK = Limits()
"""For commands that look at metadata only."""

BULK = Limits(address_space_bytes=8 * GIB, cpu_seconds=24 * 3600, timeout_seconds=24 * 3600.0)
"""For commands that read or write an image's data."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended: its exit status (negative: the signal that ended it) and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


async def run(command: Sequence[str], limits: Limits, *, ok: frozenset[int] = frozenset({0})) -> Finished:
    """Runs a program under limits and returns how it ended.

    Args:
        command: Program and arguments; found on PATH, never given to a shell.
        limits: What it may use.
        ok: The exit statuses that are not errors.

    Returns:
        Status and output.

    Raises:
        QemuImgError: The program is missing, ended with another status, overstayed or printed too much.
    """
    wrapped = (
        "prlimit",
        f"--as={limits.address_space_bytes}",
        f"--cpu={limits.cpu_seconds}",
        f"--nofile={limits.open_files}",
        "--core=0",
        "--",
        *command,
    )
    try:
        process = await asyncio.create_subprocess_exec(
            *wrapped,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # glibc reserves 128 MiB of address space for each thread that allocates, and qemu has up to 64 for its
            # I/O: on a slow disk RLIMIT_AS was reached ("qemu_thread_create: Resource temporarily unavailable").
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )
    except OSError as error:
        raise QemuImgError(command, None, f"cannot start: {error}") from error
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            stdout, stderr, status = await _collect(command, process, limits.output_bytes)
    except TimeoutError as error:
        raise QemuImgError(
            command,
            None,
            f"killed after {limits.timeout_seconds:g} s: it overstayed its deadline",
            timed_out=True,
        ) from error
    finally:
        await _reap(process)
    if status not in ok:
        raise QemuImgError(command, status, stderr.decode("utf-8", "replace").strip())
    return Finished(status, stdout, stderr)


async def _collect(command: Sequence[str], process: asyncio.subprocess.Process, most: int) -> tuple[bytes, bytes, int]:
    if process.stdout is None or process.stderr is None:
        raise QemuImgError(command, None, "was started without pipes")
    tasks = [asyncio.ensure_future(_read_at_most(stream, most)) for stream in (process.stdout, process.stderr)]
    try:
        stdout, stderr = await asyncio.gather(*tasks)
    except OverflowError as error:
        raise QemuImgError(command, None, f"killed: it printed more than {most} bytes") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return stdout, stderr, await process.wait()


async def _read_at_most(stream: asyncio.StreamReader, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(1 << 18):
        size += len(part)
        if size > most:
            raise OverflowError(size)
        parts.append(part)
    return b"".join(parts)


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Kills a program that still runs and waits for it, also when the caller is being cancelled."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await asyncio.shield(_until_ended(process))


async def _until_ended(process: asyncio.subprocess.Process) -> None:
    """Waits for the process and the end of its pipes: asyncio lets go of the pipes at their end only."""
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(1 << 18):
            pass
    await process.wait()
