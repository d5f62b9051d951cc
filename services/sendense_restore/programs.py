"""Runs one small program (mount, losetup, sfdisk, …) to its end, with a deadline and nothing left behind.

What always holds: argument lists, the C locale, a session of its own (Ctrl-C must not cut an
unmount short), and the program dies with the service, so that a mount cannot appear after the clean-up of the
service's next run has looked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger()

DEADLINE: Final = 30.0
_KILL_SECONDS = 5.0
_DRAIN_BYTES = 1 << 18
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class ProgramError(Exception):
    """A program failed, was killed at its deadline, or could not be started.

    Attributes:
        program: Its name.
        status: Exit status; None when it did not end by itself or was never started.
        output: What it said, or what is wrong.
    """

    def __init__(self, program: str, status: int | None, output: str) -> None:
        self.program = program
        self.status = status
        self.output = output
        super().__init__(f"{program}: {output or f'ended with status {status}'}")


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit status and standard output of a program that ended."""

    status: int
    stdout: bytes


async def run(command: Sequence[str], *, ok: frozenset[int] = frozenset({0}), deadline: float = DEADLINE) -> Ended:
    """Runs a program.

    Args:
        command: Program and arguments; found in the system's directories.
        ok: The exit statuses that are no errors.
        deadline: Seconds after which it is killed.

    Raises:
        ProgramError: It failed, overstayed, or is not installed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig=KILL",
            "--",
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**_ENVIRONMENT, "PATH": os.environ.get("PATH", "") + ":" + _ENVIRONMENT["PATH"]},
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError(command[0], None, f"cannot be started: {error}") from error
    try:
        async with asyncio.timeout(deadline):
            stdout, stderr = await process.communicate()
    except TimeoutError as error:
        raise ProgramError(command[0], None, f"did not end within {deadline:g} s") from error
    finally:
        if process.returncode is None:
            await asyncio.shield(end_group(process))
    status = process.returncode if process.returncode is not None else -1
    if status not in ok:
        raise ProgramError(command[0], status, stderr.decode("utf-8", "replace").strip())
    return Ended(status, stdout)


async def end_group(process: asyncio.subprocess.Process) -> None:
    """Kills a program that leads a session of its own, with its helpers, and waits for it, for some seconds.

    What it still has to say is read and thrown away: asyncio sees the end of a process only after that of its pipes.
    A program that hangs in the kernel cannot be killed; it is left to its fate and the log says so.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            while process.stdout is not None and await process.stdout.read(_DRAIN_BYTES):
                pass
            while process.stderr is not None and await process.stderr.read(_DRAIN_BYTES):
                pass
            await process.wait()
    except TimeoutError:
        log.error("a program does not end although it was killed", pid=process.pid)  # noqa: TRY400 - it has no news
