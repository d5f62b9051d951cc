"""What was copied and is not yet committed: gathered, flushed on every target connection, then reported.

What always holds: each entry of a batch was acknowledged by the target *before* the batch's flush was sent on
any connection, and a batch is reported only after all of these flushes succeeded. Copying goes on meanwhile: a batch is
closed when half of `batch_bytes` is there, and lanes begin nothing more while `batch_bytes` are begun and not reported.
So a lost connection costs less than `batch_bytes` to copy again, what was in flight included.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from sendense_blockio.entries import Entry

MAX_BATCH_ENTRIES = 8192
"""Entries of one batch; encoded they fit many times into a gRPC message of 4 MiB."""

_MAX_UNREPORTED_ENTRIES = 4 * MAX_BATCH_ENTRIES
"""Lanes pause when so many entries, which may all be zeroes, wait to be reported."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Extents that are on the target's disk.

    Attributes:
        sequence: number in the journal, ascending without gaps from the first that was asked for.
        entries: sorted by offset; zero entries that touch are joined.
        bytes_covered: sum of their lengths.
    """

    sequence: int
    entries: Sequence[Entry]
    bytes_covered: int


@dataclass(slots=True)
class CopyProgress:
    """Counters of a running copy, in bytes; any thread may read them at any time.

    Attributes:
        bytes_total: what this call has to do.
        bytes_done: copied and acknowledged, zeroes included.
        bytes_zero: of the done, those that were zero.
        bytes_committed: of the done, those in reported batches.
    """

    bytes_total: int = 0
    bytes_done: int = 0
    bytes_zero: int = 0
    bytes_committed: int = 0


def _joined_zeroes(entries: Iterable[Entry]) -> list[Entry]:
    """Sorts entries and joins zero entries that touch: a hole of a terabyte is one entry a batch."""
    joined: list[Entry] = []
    for entry in sorted(entries, key=itemgetter(0)):
        if entry.digest is None and joined and joined[-1].digest is None and joined[-1].end == entry.offset:
            joined[-1] = Entry(joined[-1].offset, joined[-1].length + entry.length, None)
        else:
            joined.append(entry)
    return joined


@dataclass(frozen=True, slots=True)
class FlushedBatch:
    """A batch on its way to the caller, with what it counts for.

    Attributes:
        batch: what the caller gets.
        data_bytes: its bytes that are no zeroes.
        additions: how many entries it was made from.
    """

    batch: Batch
    data_bytes: int
    additions: int


@dataclass(slots=True)
class _Round:
    """A batch whose flushes are on their way."""

    number: int
    flushed: FlushedBatch
    waiting_for: int


@dataclass(slots=True)
class Ledger:
    """Shared by all lanes of a copy; every method may be called from any thread.

    Attributes:
        lanes: number of target connections that must flush.
        batch_bytes: data bytes that may be begun and not reported; half of it closes a batch.
        batch_seconds: age after which a batch is closed.
        next_sequence: number of the next batch.
        progress: counters to keep.
        wake_lanes: called when lanes have something to do or to end.
        batches: flushed batches for the caller's thread; None says that all is done.
    """

    lanes: int
    batch_bytes: int
    batch_seconds: float
    next_sequence: int
    progress: CopyProgress
    wake_lanes: Callable[[], None]
    batches: queue.SimpleQueue[FlushedBatch | None] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pending: list[Entry] = field(default_factory=list)
    _pending_bytes: int = 0
    _pending_since: float = 0.0
    _begun_bytes: int = 0
    _unreported_entries: int = 0
    _refused: bool = False
    _round: _Round | None = None
    _rounds: int = 0
    _idle: int = 0
    finished: bool = False
    """All work is done and every batch was flushed."""

    @property
    def round_number(self) -> int:
        """The number of the last flush that was asked for; a lane flushes when it sees a new one."""
        return self._rounds

    @property
    def _closing_bytes(self) -> int:
        return max(1, self.batch_bytes // 2)

    def reserve(self, chunk_size: int) -> int:
        """Asks for leave to begin a request of at most `chunk_size` bytes.

        Returns:
            What was set aside, to be corrected with `begin`; 0 says that the lane must wait until it is woken.
        """
        # Never more than half: what is refused then always waits for a batch that is full enough to be closed.
        wanted = min(chunk_size, self._closing_bytes)
        with self._lock:
            full = self._begun_bytes > 0 and self._begun_bytes + wanted >= self.batch_bytes
            if full or self._unreported_entries >= _MAX_UNREPORTED_ENTRIES:
                self._refused = True
                return 0
            self._begun_bytes += wanted
        return wanted

    def begin(self, reserved: int, length: int) -> None:
        """Corrects a reservation to the data bytes that are really begun; 0 for a hole or none."""
        if length != reserved:
            with self._lock:
                self._release(reserved - length)

    def _release(self, length: int) -> None:
        self._begun_bytes -= length
        if self._refused and length > 0:
            self._refused = False
            self.wake_lanes()

    def add(self, entry: Entry, begun: int = 0) -> None:
        """Records an extent that the target acknowledged (or that needed no write).

        Args:
            entry: The extent.
            begun: Bytes that were set aside for it; given back here when it turned out to be zero.
        """
        data_bytes = 0 if entry.digest is None else entry.length
        now = time.monotonic()
        with self._lock:
            progress = self.progress
            progress.bytes_done += entry.length
            progress.bytes_zero += entry.length - data_bytes
            if not self._pending:
                self._pending_since = now
            self._pending.append(entry)
            self._pending_bytes += data_bytes
            self._unreported_entries += 1
            if begun != data_bytes:
                self._release(begun - data_bytes)
            if (
                self._pending_bytes >= self._closing_bytes
                or len(self._pending) >= MAX_BATCH_ENTRIES
                or now - self._pending_since >= self.batch_seconds
            ):
                self._begin_round()

    def lane_is_idle(self) -> None:
        """A lane has no request in flight and there is no work left; each lane says so once."""
        with self._lock:
            self._idle += 1
            if self._idle == self.lanes:
                self._begin_round()
            self._finish_if_done()

    def lane_flushed(self, number: int) -> None:
        """A lane's flush of a round succeeded."""
        with self._lock:
            current = self._round
            if current is None or current.number != number:
                raise RuntimeError(f"flush {number} was not asked for")
            current.waiting_for -= 1
            if current.waiting_for:
                return
            self._round = None
            self.batches.put(current.flushed)
            if self._idle == self.lanes or self._pending_bytes >= self._closing_bytes:
                self._begin_round()
            self._finish_if_done()

    def reported(self, flushed: FlushedBatch) -> None:
        """The caller took a batch over; lanes that waited for it go on."""
        with self._lock:
            self._unreported_entries -= flushed.additions
            self.progress.bytes_committed += flushed.batch.bytes_covered
            self._begun_bytes -= flushed.data_bytes
            if self._refused:
                self._refused = False
                self.wake_lanes()

    def _begin_round(self) -> None:
        if self._round is not None or not self._pending:
            return
        pending, self._pending = self._pending, []
        data_bytes, self._pending_bytes = self._pending_bytes, 0
        entries = _joined_zeroes(pending)
        batch = Batch(self.next_sequence, entries, sum(entry.length for entry in entries))
        self.next_sequence += 1
        self._rounds += 1
        self._round = _Round(self._rounds, FlushedBatch(batch, data_bytes, len(pending)), self.lanes)
        self.wake_lanes()

    def _finish_if_done(self) -> None:
        if self._idle == self.lanes and self._round is None and not self._pending:
            self.finished = True
            self.batches.put(None)
            self.wake_lanes()
