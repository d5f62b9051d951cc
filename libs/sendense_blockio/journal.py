"""The extent journal: a layer's resume point while it is written, and its manifest once it is sealed.

What always holds: the file only grows; a batch counts once its whole frame is in the file and fsync returned;
each frame's checksum covers the one before it, so no frame can be taken out, exchanged or moved; a file that
was written for another layer, attempt, snapshot or area list is refused. An unfinished frame at the end (a
crash while appending) is cut; anything else that is not as written is an error, never a guess.

File: magic `SNDSJRNL`, length of the header (u32 little-endian), header (JSON, sorted keys), BLAKE3 of all
that. Then frames:
magic `BTCH`, sequence (u64), payload length (u32), check of the frame's head (first 8 bytes of the BLAKE3 of
the checksum before it and the head), payload (`entries.encode_entries`), checksum (BLAKE3 of the checksum
before it, head, check and payload). Sequences begin with 1 and have no gaps.

Signatures:

    JournalHeader(layer_id: str, attempt: int, change_id: str, areas_digest: str, virtual_size: int)
    JournalWriter.create(path, header) -> JournalWriter               (path must not exist)
    JournalWriter.open(path, expected=None) -> JournalWriter          (cuts a torn tail)
        .append_batch(sequence, entries) -> bool                      (False: was committed before, equal)
        .last_sequence .next_sequence .covered_bytes .cut_bytes .header .checksum .close()   (context manager)
    read_journal(path, expected=None) -> Journal                      .header .entries .last_sequence
                                                                      .torn_bytes .checksum
    iterate_batches(path, expected=None) -> Iterator[JournalBatch]    (bounded memory)
    Entry, encode_entries, decode_entries, coverage, covers_exactly, entry_extents   (from `entries`)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from blake3 import blake3

from sendense_blockio.entries import (
    Coverage,
    Entry,
    coverage,
    covers_exactly,
    decode_entries,
    encode_entries,
    entry_extents,
)
from sendense_blockio.errors import (
    EntryFormatError,
    JournalCorruptError,
    JournalError,
    JournalLockedError,
    JournalMismatchError,
    JournalSequenceError,
    JournalWriteError,
)
from sendense_blockio.journal_format import (
    CHECKSUM_BYTES,
    FRAME_HEAD_BYTES,
    MAX_PAYLOAD_BYTES,
    JournalHeader,
    decode_header,
    encode_frame,
    encode_header,
    parse_frame_head,
)

__all__ = [
    "Coverage",
    "Entry",
    "Journal",
    "JournalBatch",
    "JournalHeader",
    "JournalWriter",
    "coverage",
    "covers_exactly",
    "decode_entries",
    "encode_entries",
    "entry_extents",
    "iterate_batches",
    "read_journal",
]


@dataclass(frozen=True, slots=True)
class JournalBatch:
    """A committed batch.

    Attributes:
        sequence: its number, from 1.
        entries: what it commits.
        checksum: BLAKE3 over it and all before it.
        end: position in the file after its frame.
        payload_digest: BLAKE3 of its encoded entries alone; tells whether a batch offered again is the same.
    """

    sequence: int
    entries: Sequence[Entry]
    checksum: bytes
    end: int
    payload_digest: bytes


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal as read.

    Attributes:
        header: what it is bound to.
        entries: all entries, in the order of their commits.
        last_sequence: the last batch; 0 for none.
        torn_bytes: bytes of an unfinished frame at the end, which do not count; 0 for none.
        checksum: BLAKE3 chained over the header and all batches: one value that stands for the whole.
    """

    header: JournalHeader
    entries: Sequence[Entry]
    last_sequence: int
    torn_bytes: int
    checksum: bytes


def _require_bound_to(path: Path, found: JournalHeader, expected: JournalHeader | None) -> None:
    if expected is None:
        return
    for field in fields(JournalHeader):
        wanted, actual = getattr(expected, field.name), getattr(found, field.name)
        if wanted != actual:
            raise JournalMismatchError(path, field.name, wanted, actual)


class _Scanner:
    """Reads frames one by one and knows where the last whole one ended."""

    def __init__(self, path: Path, stream: BinaryIO, expected: JournalHeader | None) -> None:
        self._path = path
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size
        self.header, self.end, self.checksum = decode_header(path, stream)
        _require_bound_to(path, self.header, expected)
        self.last_sequence = 0

    @property
    def torn_bytes(self) -> int:
        return self._size - self.end

    def __iter__(self) -> Iterator[JournalBatch]:
        while (batch := self._next()) is not None:
            yield batch

    def _next(self) -> JournalBatch | None:
        """Returns the next batch, or None at the end or before an unfinished frame."""
        head = self._stream.read(FRAME_HEAD_BYTES)
        if len(head) < FRAME_HEAD_BYTES or self._rest_is_unwritten(head):
            return None
        sequence, length = parse_frame_head(self._path, self.end, head, self.checksum)
        if sequence != self.last_sequence + 1:
            raise JournalCorruptError(self._path, self.end, f"batch {sequence} follows {self.last_sequence}")
        body = self._stream.read(length + CHECKSUM_BYTES)
        if len(body) < length + CHECKSUM_BYTES:
            return None
        payload, stored = body[:length], body[length:]
        checksum = blake3(self.checksum + head + payload).digest()
        if checksum != stored:
            raise JournalCorruptError(self._path, self.end, f"the checksum of batch {sequence} is wrong")
        try:
            entries = decode_entries(payload)
        except EntryFormatError as error:
            raise JournalCorruptError(self._path, self.end, f"batch {sequence}: {error}") from error
        self.end += FRAME_HEAD_BYTES + len(body)
        self.checksum = checksum
        self.last_sequence = sequence
        return JournalBatch(sequence, entries, checksum, self.end, blake3(payload).digest())

    def _rest_is_unwritten(self, head: bytes) -> bool:
        """Tells whether only zeroes follow: a file may have grown before its data, when power was lost."""
        if any(head):
            return False
        position = self._stream.tell()
        while block := self._stream.read(1 << 20):
            if any(block):
                self._stream.seek(position)
                return False
        return True


def iterate_batches(path: Path, expected: JournalHeader | None = None) -> Iterator[JournalBatch]:
    """Yields a journal's batches; memory does not grow with the file.

    Args:
        path: the journal.
        expected: what it must be bound to; None accepts any.

    Raises:
        JournalMismatchError: it is bound to something else.
        JournalCorruptError: bytes are not as written.
        JournalVersionError: a newer version wrote it.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as stream:
        yield from _Scanner(path, stream, expected)


def read_journal(path: Path, expected: JournalHeader | None = None) -> Journal:
    """Reads a whole journal; changes nothing, also when its tail is torn.

    Raises:
        JournalMismatchError: it is bound to something else than `expected`.
        JournalCorruptError: bytes are not as written.
        JournalVersionError: a newer version wrote it.
        FileNotFoundError: there is no such file.
    """
    entries: list[Entry] = []
    with path.open("rb") as stream:
        scanner = _Scanner(path, stream, expected)
        for batch in scanner:
            entries.extend(batch.entries)
        return Journal(scanner.header, entries, scanner.last_sequence, scanner.torn_bytes, scanner.checksum)


class JournalWriter:
    """The one writer of a journal; holds a lock on the file until `close`. Not for use from two threads."""

    def __init__(self, path: Path, stream: FileIO, scanner: _Scanner) -> None:
        """Takes over a stream that `create` or `open` locked; call those."""
        self._path = path
        self._stream = stream
        self._digests: list[bytes] = []
        self.covered_bytes = 0
        """Bytes that the committed batches cover."""
        for batch in scanner:
            self._digests.append(batch.payload_digest)
            self.covered_bytes += sum(entry.length for entry in batch.entries)
        self.header = scanner.header
        """What the journal is bound to."""
        self.checksum = scanner.checksum
        """BLAKE3 chained over the header and all batches."""
        self.cut_bytes = scanner.torn_bytes
        """Bytes of an unfinished frame that opening cut off."""
        self._broken = False
        if self.cut_bytes:
            os.ftruncate(stream.fileno(), scanner.end)
            os.fsync(stream.fileno())
        stream.seek(scanner.end)

    @classmethod
    def create(cls, path: Path, header: JournalHeader) -> Self:
        """Creates a journal, durably, with its directory entry.

        The header is written to a temporary file that is then linked to its name, so that no crash leaves a
        journal without a whole header.

        Raises:
            FileExistsError: the path exists; open it instead.
            JournalWriteError: it could not be made durable.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with temporary.open("xb") as stream:
                stream.write(encode_header(header))
                stream.flush()
                os.fsync(stream.fileno())
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError as error:
            raise JournalWriteError(path, str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)
        _fsync_directory(path)
        return cls.open(path, header)

    @classmethod
    def open(cls, path: Path, expected: JournalHeader | None = None) -> Self:
        """Opens an existing journal for appending, and cuts an unfinished frame at its end.

        Raises:
            JournalLockedError: another writer has it open.
            JournalMismatchError: it is bound to something else than `expected`.
            JournalCorruptError: bytes are not as written.
            JournalVersionError: a newer version wrote it.
            FileNotFoundError: there is no such file.
        """
        stream = path.open("r+b", buffering=0)
        try:
            try:
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JournalLockedError(path) from error
            with path.open("rb") as reader:
                return cls(path, stream, _Scanner(path, reader, expected))
        except BaseException:
            stream.close()
            raise

    @property
    def last_sequence(self) -> int:
        """The last committed batch; 0 for none."""
        return len(self._digests)

    @property
    def next_sequence(self) -> int:
        """The number that the next batch must have."""
        return len(self._digests) + 1

    def append_batch(self, sequence: int, entries: Iterable[Entry]) -> bool:
        """Commits a batch: when this returns, it is on disk.

        Only what an NBD flush on every connection followed may be given.

        Args:
            sequence: `next_sequence`, or an earlier number to repeat a batch whose answer was lost.
            entries: what was copied; at least one.

        Returns:
            True when it was appended now, False when the same batch had been committed before.

        Raises:
            JournalSequenceError: a number is skipped, or an earlier batch was another one.
            EntryFormatError: an entry cannot be encoded.
            JournalWriteError: it could not be made durable; the writer takes nothing more.
        """
        if self._broken:
            raise JournalWriteError(self._path, "an earlier batch failed")
        payload = encode_entries(entries)
        if not payload or len(payload) > MAX_PAYLOAD_BYTES:
            raise EntryFormatError(f"a batch has 1 to {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}", 0)
        digest = blake3(payload).digest()
        if 1 <= sequence <= self.last_sequence:
            if self._digests[sequence - 1] != digest:
                raise JournalSequenceError(self._path, sequence, self.next_sequence, "another one was committed")
            return False
        if sequence != self.next_sequence:
            raise JournalSequenceError(self._path, sequence, self.next_sequence, "not the next one")
        frame, checksum = encode_frame(self.checksum, sequence, payload)
        self._write_durably(frame)
        self.checksum = checksum
        self._digests.append(digest)
        self.covered_bytes += sum(entry.length for entry in decode_entries(payload))
        return True

    def _write_durably(self, frame: bytes) -> None:
        """Writes and syncs; a failure ends this writer, since after a failed fsync a second one may lie."""
        view = memoryview(frame)
        try:
            while view:
                view = view[os.write(self._stream.fileno(), view) :]
            os.fsync(self._stream.fileno())
        except OSError as error:
            self._broken = True
            raise JournalWriteError(self._path, str(error)) from error

    def close(self) -> None:
        """Ends writing and gives the lock back; all that was appended is already on disk."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise JournalError(f"its directory cannot be synced: {error}", path) from error
    finally:
        os.close(descriptor)
