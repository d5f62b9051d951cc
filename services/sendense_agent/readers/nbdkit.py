"""Runs a described reader as an nbdkit process: private socket, secrets in files, supervised, dies with the agent.

If nbdkit ends, the read has failed: a client may hang on the dead socket, so whoever copies must watch `died`
(cbt-facts 15). Nothing that nbdkit did not deliver ever becomes zeroes. A reader is handed out only after it has told
the disk's size and delivered its first sector: plugins open the disk at a client's connection, not at their start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import structlog

from sendense_agent.errors import ReaderUnsuitable
from sendense_agent.model import Disk
from sendense_agent.readers.description import ReaderDescription

log = structlog.get_logger()

START_SECONDS = 30.0
PROBE_SECONDS = 90.0
"""How long the first sector may take: opening a disk through vCenter takes some round trips, and a host may be busy."""
SECTOR = 512
STOP_SECONDS = 5.0
STDERR_LINES = 20
_LINE_BYTES = 2000


class Reader:
    """A running reader.

    Attributes:
        socket: Where it serves the disk, as the default export.
        pid: Its process.
    """

    def __init__(self, process: asyncio.subprocess.Process, listening: Path) -> None:
        self.socket = listening
        self.pid = process.pid
        self._process = process
        self._lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._reading = asyncio.create_task(self._read_stderr())

    async def died(self) -> str:
        """Returns when the process has ended, with its exit status and last words."""
        await self._process.wait()
        await asyncio.wait([self._reading], timeout=1)
        return f"nbdkit ended with status {self._process.returncode}: {self.last_words() or 'no message'}"

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    def last_words(self) -> str:
        """Returns the newest lines of its error output."""
        return " | ".join(self._lines)

    async def stop(self) -> None:
        """Ends the process; by force when it does not end by itself."""
        if not self.ended:
            self._process.terminate()
            ending = asyncio.create_task(self._process.wait())
            # No asyncio.timeout: in a task that is being cancelled, Python 3.11 does not turn it into a TimeoutError.
            done, _ = await asyncio.wait([ending], timeout=STOP_SECONDS)
            if not done:
                self._process.kill()
            await ending
        await self._reading

    async def _read_stderr(self) -> None:
        if self._process.stderr is None:
            return
        with contextlib.suppress(ValueError):  # a line without end: the rest is not worth keeping
            while line := await self._process.stderr.readline():
                text = line[:_LINE_BYTES].decode(errors="replace").strip()
                self._lines.append(text)
                log.debug("nbdkit", pid=self.pid, line=text)


@contextlib.asynccontextmanager
async def running_reader(description: ReaderDescription, directory: Path, disk: Disk) -> AsyncIterator[Reader]:
    """Starts a reader, yields it once it has delivered the disk's first sector, and ends it.

    Args:
        description: What to run.
        directory: A private directory is made in it, and removed at the end.
        disk: What it must serve.

    Raises:
        ReaderUnsuitable: It ended, or did not deliver in time, or serves another size; with its last words.
    """
    private = _private_directory(directory)
    try:
        listening = private / "nbd.sock"
        process = await asyncio.create_subprocess_exec(
            *_command(description, private, listening),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            # A Ctrl-C at the terminal must not end it before the agent has ended its copy.
            process_group=0,
        )
        reader = Reader(process, listening)
        try:
            connection = await _connected(reader, description.name, disk)
            for name in description.secrets:
                (private / name).unlink()  # it was read: nothing to be found later
            await _probe(reader, connection, description.name, disk)
            yield reader
        finally:
            await reader.stop()
    finally:
        shutil.rmtree(private)


def _private_directory(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(prefix="reader-", dir=parent))


def _command(description: ReaderDescription, private: Path, listening: Path) -> list[str]:
    parameters = dict(description.parameters)
    for name, content in description.files.items():
        parameters[name] = str(_private_file(private / name, content))
    for name, content in description.secrets.items():
        parameters[name] = f"+{_private_file(private / name, content)}"
    return [
        "nbdkit",
        "--foreground",
        "--exit-with-parent",
        "--readonly",
        "--newstyle",
        "--unix",
        str(listening),
        *(f"--filter={each}" for each in description.filters),
        description.plugin,
        *(f"{name}={value}" for name, value in parameters.items()),
    ]


def _private_file(path: Path, content: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    return path


async def _connected(reader: Reader, name: str, disk: Disk) -> socket.socket:
    """Returns a connection to the reader once it listens: the socket's file is there a moment before."""
    death = asyncio.create_task(reader.died())
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                connection = _try_to_connect(reader.socket)
                if connection is not None:
                    return connection
                done, _ = await asyncio.wait([death], timeout=0.01)
                if done:
                    raise ReaderUnsuitable(name, str(disk), death.result())
    except TimeoutError as error:
        why = f"nbdkit does not listen: {reader.last_words() or 'no message'}"
        raise ReaderUnsuitable(name, str(disk), why, retryable=True) from error
    finally:
        death.cancel()


def _try_to_connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


async def _probe(reader: Reader, connection: socket.socket, name: str, disk: Disk) -> None:
    """Raises unless the reader serves the disk's size and its first sector in time."""
    reading = asyncio.create_task(asyncio.to_thread(_first_sector, connection, disk.capacity_bytes))
    death = asyncio.create_task(reader.died())
    try:
        await asyncio.wait([reading, death], timeout=PROBE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            why = death.result() if death.done() else f"no first sector within {PROBE_SECONDS:g} s"
            await reader.stop()
            raise ReaderUnsuitable(name, str(disk), f"{why}: {reader.last_words() or 'no message'}", retryable=True)
        problem = reading.result()
        if problem:
            await reader.stop()  # and so its last words are complete
            raise ReaderUnsuitable(name, str(disk), f"{problem}: {reader.last_words() or 'no message'}")
    finally:
        death.cancel()
        if not reading.done():
            await reader.stop()  # which closes the other side of the thread's socket
            await asyncio.wait([reading])


def _first_sector(connection: socket.socket, capacity: int) -> str:
    """Reads the first sector, and returns what is wrong; blocking, ends when the server does."""
    handle = nbd.NBD()
    try:
        handle.connect_socket(connection.detach())
        size = handle.get_size()
        if size != capacity:
            return f"it serves {size} bytes, the disk has {capacity}"
        handle.pread(min(SECTOR, capacity), 0)
        handle.shutdown()
    except nbd.Error as error:
        return f"the disk cannot be opened ({error.string})"
    return ""
