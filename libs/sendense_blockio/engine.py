"""The copy engine: areas of a source disk into a target disk over NBD, each extent hashed and flushed.

What always holds: nothing is reported that did not survive a flush on every target connection; an error on
either side ends the copy with all connections closed, and never becomes zeroes; memory does not grow with the
disk.

Signatures (blocking; from asyncio: `await asyncio.to_thread(copy, ...)`):

    Endpoint.unix(socket_path, export_name="", *, read_only=False)
    Endpoint.tcp(host, port=10809, export_name="", *, read_only=False)
    CopyOptions(connections=2, depth=4, chunk_size=1<<20, max_bytes_in_flight=None, batch_bytes=128<<20,
                batch_seconds=5.0, zeroes="write"|"skip", source_holes=None, stall_seconds=60.0,
                request_seconds=300.0)
    copy(source, target, areas, options, on_batch, progress=None, cancel=None, *,
         first_sequence=1, capacity=None) -> CopyResult
    Batch           .sequence .entries .bytes_covered          (entries: see `journal`)
    CopyProgress    .bytes_total .bytes_done .bytes_zero .bytes_committed
    CopyResult      .bytes_copied .bytes_zero .batches .last_sequence .seconds

`on_batch` runs in the thread that called `copy`, one batch after the other; copying goes on meanwhile, and
pauses when `batch_bytes` are not reported. What it raises ends the copy. To resume, call `copy` again with the areas
less what the journal covers (`subtract(areas, entry_extents(entries))`) and `first_sequence` one above the journal's
last.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import nbd

from sendense_blockio.connection import GOODBYE_SECONDS, Connection
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.errors import (
    CopyCancelledError,
    FlushUnsupportedError,
    ReadOnlyTargetError,
    SizeMismatchError,
    TargetFlushError,
    UnalignedExtentError,
)
from sendense_blockio.extents import Extent, check, total
from sendense_blockio.lane import Lane
from sendense_blockio.ledger import Batch, CopyProgress, Ledger
from sendense_blockio.options import CopyOptions
from sendense_blockio.work import HoleMap, WorkQueue

__all__ = ["Batch", "CopyOptions", "CopyProgress", "CopyResult", "Endpoint", "copy"]

_CANCEL_SECONDS = 0.1
"""How often a cancel is looked for."""

_SKIPPED_HOLE_BYTES = 1 << 30
_WRITTEN_HOLE_BYTES = 32 << 20
"""Holes are zeroed in steps that a slow target finishes within a deadline."""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a finished copy did.

    Attributes:
        bytes_copied: bytes of the areas, zeroes included.
        bytes_zero: of these, bytes that were zero.
        batches: reported batches.
        last_sequence: number of the last batch; one below `first_sequence` when there was none.
        seconds: wall time.
    """

    bytes_copied: int
    bytes_zero: int
    batches: int
    last_sequence: int
    seconds: float


def copy(
    source: Endpoint,
    target: Endpoint,
    areas: Sequence[Extent],
    options: CopyOptions,
    on_batch: Callable[[Batch], None],
    progress: CopyProgress | None = None,
    cancel: threading.Event | None = None,
    *,
    first_sequence: int = 1,
    capacity: int | None = None,
) -> CopyResult:
    """Copies areas from one export into another; returns when everything is flushed and reported.

    Args:
        source: where to read.
        target: where to write the same offsets.
        areas: what to copy: sorted, without overlaps.
        options: how.
        on_batch: takes each flushed batch, in order; what it raises ends the copy.
        progress: counters to keep; may be read from any thread.
        cancel: set by anybody to end the copy at the next chunk.
        first_sequence: number of the first batch.
        capacity: the disk's size in bytes, which both exports must have at least; None asks only for the
            areas.

    Raises:
        ExtentError: the areas overlap, go beyond the end, or do not fit a server's block size.
        EndpointError: a server cannot be reached or does not suit; nothing was copied.
        CopyError: reading, writing, flushing or a connection failed; batches reported so far remain valid,
            except after an error that `poisons`.
        CopyCancelledError: `cancel` was set.
    """
    started = time.monotonic()
    progress = progress if progress is not None else CopyProgress()
    cancel = cancel if cancel is not None else threading.Event()
    needed = 0
    for area in check(areas, capacity):
        needed = area.end
    progress.bytes_total = total(areas)
    if areas:
        run = _Run(source, target, areas, options, progress, max(needed, capacity or 0), first_sequence)
        try:
            run.execute(on_batch, cancel)
        finally:
            run.close()
        last_sequence = run.ledger.next_sequence - 1
    else:
        last_sequence = first_sequence - 1
    return CopyResult(
        bytes_copied=progress.bytes_done,
        bytes_zero=progress.bytes_zero,
        batches=last_sequence - first_sequence + 1,
        last_sequence=last_sequence,
        seconds=time.monotonic() - started,
    )


class _Run:
    """One copy: its connections, its lanes and their threads."""

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        areas: Sequence[Extent],
        options: CopyOptions,
        progress: CopyProgress,
        needed: int,
        first_sequence: int,
    ) -> None:
        """Connects, and checks everything that can be known before the first byte."""
        self._connections: list[Connection] = []
        self._lanes: list[Lane] = []
        self._threads: list[threading.Thread] = []
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.ledger = Ledger(
            lanes=options.connections,
            batch_bytes=options.batch_bytes,
            batch_seconds=options.batch_seconds,
            next_sequence=first_sequence,
            progress=progress,
            wake_lanes=self._wake_lanes,
        )
        try:
            self._prepare(source, target, areas, options, needed)
        except BaseException:
            self.close()
            raise

    def _prepare(
        self, source: Endpoint, target: Endpoint, areas: Sequence[Extent], options: CopyOptions, needed: int
    ) -> None:
        seconds = options.stall_seconds
        targets = [self._kept(Connection("target", target, seconds)) for _ in range(options.connections)]
        sources = [self._kept(Connection("source", source, seconds)) for _ in range(options.connections)]
        for connection in (*targets, *sources):
            if connection.size < needed:
                raise SizeMismatchError(connection.side, str(connection.endpoint), connection.size, needed)
            _require_alignment(connection, areas)
        for connection in targets:
            _require_writable(connection)
        holes = self._hole_map(source, options)
        limits = [_largest_request(connection) for connection in (*targets, *sources)]
        options = replace(
            options,
            chunk_size=min(options.chunk_size, *limits),
            max_bytes_in_flight=(options.connections * options.lane_bytes),
        )
        can_zero = all(connection.require_handle().can_zero() for connection in targets)
        hole_size = _SKIPPED_HOLE_BYTES
        if options.zeroes == "write":
            hole_size = _WRITTEN_HOLE_BYTES if can_zero else options.chunk_size
        work = WorkQueue(areas, options.chunk_size, hole_size, holes)
        for one, other in zip(sources, targets, strict=True):
            self._lanes.append(Lane(one, other, work, self.ledger, options))

    def _kept(self, connection: Connection) -> Connection:
        self._connections.append(connection)
        return connection

    def _hole_map(self, source: Endpoint, options: CopyOptions) -> HoleMap | None:
        if not options.asks_for_holes:
            return None
        connection = self._kept(
            Connection("source", source, options.stall_seconds, meta_context=nbd.CONTEXT_BASE_ALLOCATION)
        )
        return HoleMap(connection) if HoleMap.supported_by(connection) else None

    def _wake_lanes(self) -> None:
        for lane in self._lanes:
            lane.wake()

    def _run_lane(self, lane: Lane) -> None:
        try:
            lane.run()
        except BaseException as failure:  # noqa: BLE001 - raised again by the caller's thread
            # Frames would keep libnbd's handles, and their descriptors, for as long as somebody keeps the error.
            traceback.clear_frames(failure.__traceback__)
            if failure.__cause__ is not None:
                traceback.clear_frames(failure.__cause__.__traceback__)
            self._failures.put(failure)
            self.ledger.batches.put(None)

    def execute(self, on_batch: Callable[[Batch], None], cancel: threading.Event) -> None:
        """Runs the lanes and hands batches over until all is done."""
        for number, lane in enumerate(self._lanes):
            thread = threading.Thread(target=self._run_lane, args=(lane,), name=f"copy-lane-{number}")
            self._threads.append(thread)
            thread.start()
        try:
            self._report(on_batch, cancel)
        finally:
            self._stop_lanes()
        for connection in self._connections:
            connection.say_goodbye()

    def _report(self, on_batch: Callable[[Batch], None], cancel: threading.Event) -> None:
        while True:
            if cancel.is_set():
                raise CopyCancelledError("the copy was cancelled")
            try:
                flushed = self.ledger.batches.get(timeout=_CANCEL_SECONDS)
            except queue.Empty:
                continue
            if flushed is not None:
                on_batch(flushed.batch)
                self.ledger.reported(flushed)
                continue
            if self._failures.empty():
                return
            self._stop_lanes()
            self._raise_failure(on_batch)

    def _raise_failure(self, on_batch: Callable[[Batch], None]) -> None:
        """Raises the failure that matters most; batches that were flushed before it are handed over first."""
        failures = []
        while not self._failures.empty():
            failures.append(self._failures.get())
        poison = next((one for one in failures if isinstance(one, TargetFlushError)), None)
        if poison is not None:
            raise poison
        while not self.ledger.batches.empty():
            flushed = self.ledger.batches.get()
            if flushed is not None:
                on_batch(flushed.batch)
                self.ledger.reported(flushed)
        raise failures[0]

    def _stop_lanes(self) -> None:
        """Ends all threads; each looks at its flag at least every quarter of a second."""
        for lane in self._lanes:
            lane.stop()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Closes every connection; that is what ends the epoch.

        Sources get a moment to answer what is in flight: nbdkit 1.32 may abort (`raw_send_socket: sock >= 0`) when
        a client vanishes, and a resume would need a new reader.
        """
        for connection in self._connections:
            if connection.side == "target":
                connection.close()
        deadline = time.monotonic() + GOODBYE_SECONDS
        for connection in self._connections:
            if connection.side == "source":
                connection.say_goodbye(max(deadline - time.monotonic(), 0.0))
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()


def _largest_request(connection: Connection) -> int:
    """Returns the largest request that the server takes, as a multiple of 4096; 32 MiB is what all take."""
    limit: int = connection.require_handle().get_block_size(nbd.SIZE_MAXIMUM)
    if not limit:
        return 32 << 20
    return max(limit - limit % 4096, 4096)


def _require_writable(connection: Connection) -> None:
    handle = connection.require_handle()
    if connection.endpoint.read_only or handle.is_read_only():
        raise ReadOnlyTargetError("is read-only", "target", str(connection.endpoint))
    if not handle.can_flush():
        raise FlushUnsupportedError("cannot flush", "target", str(connection.endpoint))


def _require_alignment(connection: Connection, areas: Sequence[Extent]) -> None:
    """Refuses areas that a server with a minimum block size would refuse one by one in the middle of the copy."""
    block: int = connection.require_handle().get_block_size(nbd.SIZE_MINIMUM)
    if block <= 1:
        return
    for area in areas:
        if area.offset % block or (area.end % block and area.end != connection.size):
            raise UnalignedExtentError(area.offset, area.length, block, connection.side)
