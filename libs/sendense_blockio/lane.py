"""One lane of a copy: a thread with a source and a target connection, and requests in flight on both.

A request is read, and its write begins inside the read's completion from the same memory; its BLAKE3 is
computed while the write is on its way. Callbacks of libnbd must not call the handle that runs them, so reads
are started from the loop and writes (another handle) from the read's callback. What goes wrong in a callback
is kept and raised by the loop.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import nbd
from blake3 import blake3

from sendense_blockio.buffers import BlockBuffer, BufferPool
from sendense_blockio.entries import Entry
from sendense_blockio.errors import (
    BlockIOError,
    ConnectionLostError,
    Side,
    SourceReadError,
    StallError,
    TargetFlushError,
    TargetWriteError,
)

if TYPE_CHECKING:
    from sendense_blockio.connection import Connection
    from sendense_blockio.ledger import Ledger
    from sendense_blockio.options import CopyOptions
    from sendense_blockio.work import Piece, WorkQueue

SIDES: tuple[Side, Side] = ("source", "target")

_EVENTS = {
    nbd.AIO_DIRECTION_READ: select.POLLIN,
    nbd.AIO_DIRECTION_WRITE: select.POLLOUT,
    nbd.AIO_DIRECTION_BOTH: select.POLLIN | select.POLLOUT,
}

_SMALL_REQUESTS_FACTOR = 8
"""Small requests may be this many times the depth: what is bounded is the bytes in flight."""

_CHECK_SECONDS = 0.25
"""How often deadlines are looked at, and the longest wait for an event."""

_LOST = frozenset({errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNRESET})
"""Errors that mean an ended connection, whatever request they came for."""


class _Errno(Protocol):
    """How libnbd tells a callback the error number; 0 for success."""

    value: int


class _Request:
    """One piece on its way."""

    __slots__ = ("buffer", "digest", "footprint", "length", "offset", "side", "since", "to_do")

    def __init__(self, offset: int, length: int, footprint: int, now: float) -> None:
        self.offset = offset
        self.length = length
        self.footprint = footprint
        self.side: Side = "source"
        self.since = now
        self.buffer: BlockBuffer | None = None
        self.digest: bytes | None = None
        # Write and hash end in any order; the request is complete when nothing is left to do.
        self.to_do = 0


class Lane:
    """Copies pieces from a queue until there are none, then flushes until the ledger is finished."""

    def __init__(
        self, source: Connection, target: Connection, work: WorkQueue, ledger: Ledger, options: CopyOptions
    ) -> None:
        """Takes two connections over; `close` closes them."""
        self._source = source
        self._target = target
        self._work = work
        self._ledger = ledger
        self._options = options
        self._write_zeroes = options.zeroes == "write"
        self._target_can_zero = bool(target.require_handle().can_zero())
        self._budget = options.lane_bytes
        self._max_requests = options.depth * _SMALL_REQUESTS_FACTOR
        self._pool = BufferPool(options.chunk_size, self._budget)
        self._active: set[_Request] = set()
        self._bytes_in_flight = 0
        self._exhausted = False
        self._idle = False
        self._next: Piece | None = None
        self._pause = 0.0
        self._flushed_round = 0
        self._flush_since: float | None = None
        self._activity: dict[Side, float] = {"source": 0.0, "target": 0.0}
        self._failure: BaseException | None = None
        self._stopped = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """Makes the lane look at the ledger again; from any thread, before `close`."""
        os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """Makes `run` return soon, whatever is in flight; from any thread, before `close`."""
        self._stopped = True
        self.wake()

    def close(self) -> None:
        """Closes both connections and gives the memory back; after `run` ended."""
        self._source.close()
        self._target.close()
        self._active.clear()
        os.close(self._wake_fd)

    def run(self) -> None:
        """Copies until the ledger is finished or `stop` was called.

        Raises:
            CopyError: what went wrong; nothing of this lane that is not in a batch may be relied on.
        """
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        source = self._source.require_handle()
        target = self._target.require_handle()
        watched = [_Watched(poll, self._source, source), _Watched(poll, self._target, target)]
        by_fd = {one.connection.fd: one for one in watched}
        next_check = time.monotonic() + _CHECK_SECONDS
        wait = int(_CHECK_SECONDS * 1000)
        while not self._stopped and not self._ledger.finished:
            self._fill(source, target)
            self._flush_if_asked(target)
            self._raise_failure()
            for one in watched:
                if not one.update_mask() and self._needs(one.connection.side):
                    raise self._lost(one.connection.side)
            events = poll.poll(min(wait, 1 + int(self._pause * 1000)) if self._pause else wait)
            now = time.monotonic()
            for fd, event in events:
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                    continue
                one = by_fd[fd]
                self._activity[one.connection.side] = now
                self._notify(one, event)
            self._raise_failure()
            if now >= next_check:
                next_check = now + _CHECK_SECONDS
                self._check_deadlines(now)

    def _needs(self, side: Side) -> bool:
        """Whether an ended connection matters; the source's does not once everything was read."""
        if side == "target":
            return True
        return not self._exhausted or any(request.side == "source" for request in self._active)

    def _fill(self, source: nbd.NBD, target: nbd.NBD) -> None:
        """Starts requests while bytes in flight, their number and the ledger allow it."""
        while (
            not self._exhausted
            and (not self._active or self._bytes_in_flight + self._options.chunk_size <= self._budget)
            and len(self._active) < self._max_requests
            and (reserved := self._ledger.reserve(self._options.chunk_size))
        ):
            piece, self._next = self._next or self._work.take(), None
            data_bytes = 0 if piece is None or piece.hole else piece.length
            self._pause = self._options.pace.take(data_bytes) if self._options.pace and data_bytes else 0.0
            self._ledger.begin(reserved, 0 if self._pause else data_bytes)
            if piece is None:
                self._exhausted = True
                break
            if self._pause:
                self._next = piece
                break
            if piece.hole and not self._write_zeroes:
                self._ledger.add(Entry(piece.offset, piece.length, None))
                continue
            footprint = 0 if piece.hole else self._pool.footprint(piece.length)
            request = _Request(piece.offset, piece.length, footprint, time.monotonic())
            self._active.add(request)
            self._bytes_in_flight += footprint
            if piece.hole:
                self._start_zero(target, request)
            else:
                self._start_read(source, target, request)
        if self._exhausted and not self._active and not self._idle:
            self._idle = True
            self._ledger.lane_is_idle()

    def _start_read(self, source: nbd.NBD, target: nbd.NBD, request: _Request) -> None:
        buffer = self._pool.take(request.length)
        request.buffer = buffer

        def on_read(error: _Errno) -> int:
            if self._stopped:
                return 1
            if error.value:
                self._fail(self._request_error(request, error.value))
                return 1
            try:
                self._pass_on(target, request, buffer)
            except BaseException as failure:  # noqa: BLE001 - must not pass through libnbd's C frames
                self._fail(failure)
            return 1

        try:
            source.aio_pread(buffer.view, request.offset, on_read)
        except nbd.Error as error:
            raise self._refused(request, error) from error

    def _pass_on(self, target: nbd.NBD, request: _Request, buffer: BlockBuffer) -> None:
        """Writes what was read, from the same memory, and hashes it while the write is on its way."""
        if buffer.is_zero():
            if self._write_zeroes:
                self._start_zero(target, request)
            else:
                self._complete(request)
            return
        request.side = "target"
        request.since = time.monotonic()
        request.to_do = 2
        try:
            target.aio_pwrite(buffer.view, request.offset, self._on_written(request))
        except nbd.Error as error:
            raise self._refused(request, error) from error
        request.digest = blake3(buffer.view).digest()
        self._one_done(request)

    def _start_zero(self, target: nbd.NBD, request: _Request) -> None:
        """Zeroes an extent of the target without ever trimming it: below an overlay old data would show."""
        request.side = "target"
        request.since = time.monotonic()
        request.to_do = 1
        try:
            if self._target_can_zero:
                target.aio_zero(request.length, request.offset, self._on_written(request), nbd.CMD_FLAG_NO_HOLE)
            else:
                # Holes are cut to chunks for such a target (engine), so this memory is bounded.
                target.aio_pwrite(bytes(request.length), request.offset, self._on_written(request))
        except nbd.Error as error:
            raise self._refused(request, error) from error

    def _on_written(self, request: _Request) -> Callable[[_Errno], int]:
        def on_written(error: _Errno) -> int:
            if error.value:
                self._fail(self._request_error(request, error.value))
                return 1
            try:
                self._one_done(request)
            except BaseException as failure:  # noqa: BLE001 - must not pass through libnbd's C frames
                self._fail(failure)
            return 1

        return on_written

    def _one_done(self, request: _Request) -> None:
        request.to_do -= 1
        if not request.to_do:
            self._complete(request)

    def _complete(self, request: _Request) -> None:
        self._active.discard(request)
        self._bytes_in_flight -= request.footprint
        if request.buffer is not None:
            self._pool.give_back(request.buffer)
            request.buffer = None
        # What a hole covers was never set aside: its memory is not read.
        begun = request.length if request.footprint else 0
        self._ledger.add(Entry(request.offset, request.length, request.digest), begun)

    def _flush_if_asked(self, target: nbd.NBD) -> None:
        """Flushes when the ledger closed a batch; the ledger asks again only after every lane answered."""
        number = self._ledger.round_number
        if number == self._flushed_round:
            return
        self._flushed_round = number
        self._flush_since = time.monotonic()

        def on_flushed(error: _Errno) -> int:
            self._flush_since = None
            if error.value in _LOST:
                self._fail(ConnectionLostError("the connection ended during a flush", "target"))
            elif error.value:
                self._fail(TargetFlushError("flush failed", "target", errno=error.value))
            else:
                try:
                    self._ledger.lane_flushed(number)
                except BaseException as failure:  # noqa: BLE001 - must not pass through libnbd's C frames
                    self._fail(failure)
            return 1

        try:
            target.aio_flush(on_flushed)
        except nbd.Error as error:
            raise self._lost("target") from error

    def _notify(self, one: _Watched, event: int) -> None:
        try:
            one.notify(event)
        except nbd.Error as error:
            self._raise_failure()
            if self._needs(one.connection.side):
                raise self._lost(one.connection.side, str(error)) from error

    def _check_deadlines(self, now: float) -> None:
        for side in SIDES:
            waiting = [request for request in self._active if request.side == side]
            oldest = min(waiting, key=lambda request: request.since, default=None)
            since = min(
                oldest.since if oldest is not None else now,
                self._flush_since if side == "target" and self._flush_since is not None else now,
            )
            if since == now:
                continue
            where = (oldest.offset, oldest.length) if oldest is not None else (None, None)
            if now - max(since, self._activity[side]) > self._options.stall_seconds:
                limit = self._options.stall_seconds
                raise StallError(f"nothing moved for {limit:g} s", side, limit, *where)
            if now - since > self._options.request_seconds:
                limit = self._options.request_seconds
                raise StallError(f"a request took over {limit:g} s", side, limit, *where)

    def _fail(self, failure: BaseException) -> None:
        """Keeps the first failure for the loop: later ones follow from it."""
        if self._failure is None:
            self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _request_error(self, request: _Request, number: int) -> BlockIOError:
        if number in _LOST:
            return ConnectionLostError("the connection ended", request.side, request.offset, request.length)
        if request.side == "source":
            return SourceReadError("read failed", "source", request.offset, request.length, number)
        return TargetWriteError("write failed", "target", request.offset, request.length, number)

    def _refused(self, request: _Request, error: nbd.Error) -> BlockIOError:
        """Says why libnbd did not take a request: its connection has ended, or the server's limits forbid it."""
        connection = self._source if request.side == "source" else self._target
        number = errno.ENOTCONN if connection.lost else error.errnum or errno.EINVAL
        return self._request_error(request, number)

    def _lost(self, side: Side, detail: str = "the connection ended") -> ConnectionLostError:
        waiting = [request for request in self._active if request.side == side]
        if not waiting:
            return ConnectionLostError(detail, side)
        oldest = min(waiting, key=lambda request: request.since)
        return ConnectionLostError(detail, side, oldest.offset, oldest.length)


class _Watched:
    """A connection in a poll set; the wanted events are told to the kernel only when they change."""

    __slots__ = ("_direction", "_handle", "_poll", "connection")

    def __init__(self, poll: select.poll, connection: Connection, handle: nbd.NBD) -> None:
        self.connection = connection
        self._poll = poll
        self._handle = handle
        self._direction = 0

    def update_mask(self) -> bool:
        """Asks for the events that libnbd waits for; returns whether the connection still lives."""
        direction: int = self._handle.aio_get_direction()
        if direction == self._direction:
            return direction != 0
        self._direction = direction
        if direction == 0:
            self._poll.unregister(self.connection.fd)
            return False
        self._poll.register(self.connection.fd, _EVENTS[direction])
        return True

    def notify(self, event: int) -> None:
        """Lets libnbd read or write; what it waits for may have changed since the events were asked for."""
        direction = self._handle.aio_get_direction()
        if event & ~select.POLLOUT and direction & nbd.AIO_DIRECTION_READ:
            self._handle.aio_notify_read()
        elif direction & nbd.AIO_DIRECTION_WRITE:
            self._handle.aio_notify_write()
