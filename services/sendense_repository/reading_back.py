"""Reads a layer's own clusters back through qemu and libnbd, and compares them with its journal.

The image is opened alone, without the layers below: what it does not hold itself reads as zeroes, so nothing of a
parent can hide that a cluster was lost. Requests of up to 1 MiB are kept in flight on two connections, and hashing runs
beside them; files are read past the page cache where they can be, since the medium is what is to be proved.

The functions that read block: call them in a thread. They look at `cancel` at every request.

Over 400 lines: what is read back and how damage gets its name belong together.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nbd
from blake3 import blake3

from sendense_blockio.buffers import BlockBuffer, BufferPool
from sendense_blockio.connection import Connection
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.errors import ConnectionLostError, StallError
from sendense_blockio.extents import Extent, merge, split
from sendense_blockio.journal import Entry
from sendense_qemu.nodes import file_access, qcow2_node
from sendense_qemu.storage_daemon import StorageDaemon

CHUNK = 1 << 20
"""Bytes of the largest request."""

_CONNECTIONS = 2
_DEPTH = 4
_SECONDS = 120.0
_POLL_MILLISECONDS = 100
_DAEMON_MEMORY = 1 << 30
_STATUS_WINDOW = 1 << 31
_DEPTH_CONTEXT = "qemu:allocation-depth"
_LOST = frozenset({errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNRESET})


class ReadingCancelled(Exception):
    """Somebody asked to stop."""


class Pace:
    """A bound on bytes a second, shared by threads; 0 for none."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    @property
    def is_bounded(self) -> bool:
        """Whether there is a bound."""
        return self._rate > 0

    def wait(self, length: int, cancel: threading.Event) -> None:
        """Waits until `length` more bytes may be read, or somebody cancels."""
        if not self._rate:
            return
        with self._lock:
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + length / self._rate
        cancel.wait(max(0.0, begin - time.monotonic()))


@dataclass(frozen=True, slots=True)
class BadRange:
    """A range that does not read as its journal entry says."""

    offset: int
    length: int
    finding: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an image holds itself.

    Attributes:
        held: Clusters that it holds, as data or as zeroes.
        not_zero: Those that qemu does not know to be zero.
        unreadable: Where qemu could not tell.
    """

    held: list[Extent]
    not_zero: list[Extent]
    unreadable: list[Extent]


class ReadBack:
    """A qemu-storage-daemon that serves images for reading; made by `open_read_back`."""

    def __init__(self, daemon: StorageDaemon, socket: Path) -> None:
        self._daemon = daemon
        self._socket = socket
        self._numbers = itertools.count()

    @asynccontextmanager
    async def image(self, chain: Sequence[Path]) -> AsyncIterator[Endpoint]:
        """Serves a qcow2 image whose header was judged, read-only, for the time of the block.

        Args:
            chain: The image, then the layers below that it is to be read with; none to see only what it holds itself.

        Raises:
            StorageDaemonError: qemu cannot open it.
        """
        name = f"image-{next(self._numbers)}"
        access = await asyncio.to_thread(file_access, chain[0], self._daemon.aio)
        await self._daemon.add_node(qcow2_node(name, chain, access, read_only=True))
        try:
            export = {"type": "nbd", "id": name, "node-name": name, "name": name, "allocation-depth": True}
            await self._daemon.execute("block-export-add", {**export, "writable": False})
            try:
                yield Endpoint.unix(self._socket, name, read_only=True)
            finally:
                await self._end_export(name)
        finally:
            await self._daemon.remove_node(name)

    async def _end_export(self, name: str) -> None:
        await self._daemon.remove_export(name, mode="hard")
        async with asyncio.timeout(_SECONDS):
            # There is no event that tells the end.
            while any(export.id == name for export in await self._daemon.list_exports()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def open_read_back() -> AsyncIterator[ReadBack]:
    """Runs a daemon for the time of the block; it has its own directory and dies with this process."""
    with tempfile.TemporaryDirectory(prefix="sendense-verify-") as name:
        directory = Path(name)
        daemon = await StorageDaemon.start(
            qmp_socket=directory / "qmp",
            log_path=directory / "log",
            memory_bytes=_DAEMON_MEMORY,
            die_with_parent=True,
        )
        try:
            await daemon.serve_nbd(directory / "nbd")
            yield ReadBack(daemon, directory / "nbd")
        finally:
            await daemon.stop()


def allocation(endpoint: Endpoint, extents: Sequence[Extent]) -> Allocation:
    """Returns what the image holds itself (depth 0) within some extents, by NBD block status.

    Raises:
        ConnectionLostError: qemu ended.
    """
    depths, failed = _block_status(endpoint, _DEPTH_CONTEXT, extents)
    flags, failed_too = _block_status(endpoint, nbd.CONTEXT_BASE_ALLOCATION, extents)
    return Allocation(
        held=merge(extent for extent, depth in depths if depth == 1),
        not_zero=merge(extent for extent, flag in flags if not flag & nbd.STATE_ZERO),
        unreadable=merge(sorted([*failed, *failed_too])),
    )


def differing(
    endpoint: Endpoint,
    entries: Iterable[Entry],
    pace: Pace,
    cancel: threading.Event,
    on_bytes: Callable[[int], None],
) -> list[BadRange]:
    """Reads entries and returns those whose bytes are not what they say, in ascending order.

    Args:
        endpoint: The image.
        entries: Sorted, not overlapping; those without a digest must be zero.
        pace: How fast.
        cancel: Set to stop.
        on_bytes: Told of bytes that were read; called in several threads.

    Raises:
        ReadingCancelled: Somebody asked to stop.
        ConnectionLostError: qemu ended.
    """
    reads = _SharedReads(entries)
    readers = [_Reader(endpoint, reads, pace, cancel, on_bytes) for _ in range(_CONNECTIONS)]
    threads = [threading.Thread(target=reader.run, name=f"verify-{number}") for number, reader in enumerate(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [reader.failure for reader in readers if reader.failure is not None]
    if failures:
        raise failures[0]
    return sorted((bad for reader in readers for bad in reader.bad), key=lambda bad: bad.offset)


def differing_edges(own: Endpoint, below: Endpoint | None, edges: Iterable[Extent]) -> list[BadRange]:
    """Compares bytes that no journal entry covers but that lie in clusters of the image: copied from below, or zero."""
    bad = []
    mine = Connection("source", own, _SECONDS)
    theirs = Connection("source", below, _SECONDS) if below is not None else None
    try:
        for edge in edges:
            for offset in range(edge.offset, edge.end, CHUNK):
                length = min(CHUNK, edge.end - offset)
                expected = _pread(theirs, offset, length) if theirs is not None else bytes(length)
                if _pread(mine, offset, length) != expected:
                    bad.append(BadRange(offset, length, "beside the copied areas it differs from the layer below"))
    finally:
        mine.say_goodbye()
        if theirs is not None:
            theirs.say_goodbye()
    return bad


@dataclass(frozen=True, slots=True)
class _Read:
    """One request and the entries, or the part of one, that it covers."""

    offset: int
    length: int
    entries: Sequence[Entry]


class _SharedReads:
    """Hands out work to readers: each piece is one entry, or small ones that touch, up to a chunk together."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = iter(entries)
        self._ahead: Entry | None = None
        self._lock = threading.Lock()

    def take(self) -> list[Entry]:
        """Returns entries that touch one another; none when all were given out."""
        with self._lock:
            group: list[Entry] = []
            size = 0
            while (entry := self._peek()) is not None:
                if group and (entry.offset != group[-1].end or size + entry.length > CHUNK):
                    break
                group.append(entry)
                size += entry.length
                self._ahead = None
            return group

    def _peek(self) -> Entry | None:
        if self._ahead is None:
            self._ahead = next(self._entries, None)
        return self._ahead


class _Reader:
    """One connection with requests in flight; hashes in the order of its requests."""

    def __init__(
        self,
        endpoint: Endpoint,
        reads: _SharedReads,
        pace: Pace,
        cancel: threading.Event,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._endpoint = endpoint
        self._reads = reads
        self._pace = pace
        self._cancel = cancel
        self._on_bytes = on_bytes
        self._pool = BufferPool(CHUNK, _DEPTH * CHUNK)
        self._hasher = blake3()
        self._spoiled: Entry | None = None
        self.bad: list[BadRange] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Reads until there is nothing left; keeps what went wrong in `failure`."""
        try:
            connection = Connection("source", self._endpoint, _SECONDS)
            try:
                self._run(connection)
            finally:
                connection.say_goodbye()
        except BaseException as failure:  # noqa: BLE001 - raised again by the caller's thread
            self.failure = failure

    def _run(self, connection: Connection) -> None:
        in_flight: deque[tuple[_Read, BlockBuffer, int]] = deque()
        handle = connection.require_handle()
        for read in self._cut():
            # Whoever is held back has nothing in flight: progress is told, and the server sees no idle request.
            while in_flight and len(in_flight) >= (1 if self._pace.is_bounded else _DEPTH):
                self._finish(connection, *in_flight.popleft())
            self._pace.wait(read.length, self._cancel)
            if self._cancel.is_set():
                raise ReadingCancelled
            buffer = self._pool.take(read.length)
            in_flight.append((read, buffer, handle.aio_pread(buffer.view, read.offset)))
        while in_flight:
            self._finish(connection, *in_flight.popleft())

    def _cut(self) -> Iterator[_Read]:
        while group := self._reads.take():
            first, last = group[0], group[-1]
            for offset in range(first.offset, last.end, CHUNK):
                yield _Read(offset, min(CHUNK, last.end - offset), group)

    def _finish(self, connection: Connection, read: _Read, buffer: BlockBuffer, cookie: int) -> None:
        problem = _wait_for(connection, cookie)
        self._on_bytes(read.length)
        if len(read.entries) == 1:
            self._judge_part(read, buffer, problem)
        elif problem:
            # One of them cannot be read: each is read again by itself, to name the right one.
            self._read_singly(connection, read.entries)
        else:
            for entry in read.entries:
                start = entry.offset - read.offset
                self._judge(entry, buffer.view[start : start + entry.length], "")
        self._pool.give_back(buffer)

    def _read_singly(self, connection: Connection, entries: Sequence[Entry]) -> None:
        for entry in entries:
            buffer = self._pool.take(entry.length)
            cookie = connection.require_handle().aio_pread(buffer.view, entry.offset)
            problem = _wait_for(connection, cookie)
            self._judge(entry, buffer.view, problem)
            self._pool.give_back(buffer)

    def _judge(self, entry: Entry, content: memoryview, problem: str) -> None:
        if not problem and entry.digest is None:
            problem = "" if nbd.Buffer.from_buffer(content).is_zero() else "journaled zeroes are not zero"
        elif not problem and blake3(content).digest() != entry.digest:
            problem = "its BLAKE3 is not the journaled one"
        if problem:
            self.bad.append(BadRange(entry.offset, entry.length, problem))

    def _judge_part(self, read: _Read, buffer: BlockBuffer, problem: str) -> None:
        """Judges the request of a single entry, which may be one of several."""
        entry = read.entries[0]
        if read.offset == entry.offset:
            self._hasher, self._spoiled = blake3(), None
        if self._spoiled is entry:
            return
        if not problem and entry.digest is None:
            problem = "" if buffer.is_zero() else "journaled zeroes are not zero"
        elif not problem:
            self._hasher.update(buffer.view)
            if read.offset + read.length == entry.end and self._hasher.digest() != entry.digest:
                problem = "its BLAKE3 is not the journaled one"
        if problem:
            self._spoiled = entry
            self.bad.append(BadRange(entry.offset, entry.length, problem))


def _wait_for(connection: Connection, cookie: int) -> str:
    """Waits for a read; returns what was wrong with it, empty when nothing was."""
    handle = connection.require_handle()
    deadline = time.monotonic() + _SECONDS
    try:
        while not handle.aio_command_completed(cookie):
            if time.monotonic() > deadline:
                raise StallError("a read", "source", _SECONDS)
            handle.poll(_POLL_MILLISECONDS)
    except nbd.Error as error:
        if connection.lost or error.errnum in _LOST:
            raise ConnectionLostError(f"the connection ended: {error}", "source") from error
        return f"it cannot be read: {error.string}"
    return ""


def _pread(connection: Connection, offset: int, length: int) -> bytes:
    content = bytearray(length)
    problem = _wait_for(connection, connection.require_handle().aio_pread(memoryview(content), offset))
    return b"" if problem else bytes(content)


def _block_status(
    endpoint: Endpoint, context: str, extents: Sequence[Extent]
) -> tuple[list[tuple[Extent, int]], list[Extent]]:
    """Returns the runs of one context, and where the server failed to tell."""
    runs: list[tuple[Extent, int]] = []
    failed: list[Extent] = []
    connection = Connection("source", endpoint, _SECONDS, meta_context=context)
    try:
        for extent in split(extents, _STATUS_WINDOW):
            position = extent.offset
            while position < extent.end:
                found, problem = _ask_status(connection, context, position, extent.end - position)
                if problem or not sum(found[::2]):
                    failed.append(Extent(position, extent.end - position))
                    break
                for run, flags in zip(found[::2], found[1::2], strict=True):
                    length = min(run, extent.end - position)  # the last one may go beyond what was asked
                    if length:
                        runs.append((Extent(position, length), flags))
                        position += length
    finally:
        connection.say_goodbye()
    return runs, failed


def _ask_status(connection: Connection, context: str, offset: int, length: int) -> tuple[list[int], str]:
    found: list[int] = []

    def on_extents(name: str, _offset: int, entries: list[int], _error: object) -> int:
        if name == context:
            found.extend(entries)
        return 0

    problem = _wait_for(connection, connection.require_handle().aio_block_status(length, offset, on_extents))
    return found, problem
