"""Every error of this package, each with the attributes that a caller needs to decide what to do next.

`BlockIOError` is the root. `retryable` says whether the same call may succeed later without anything being
changed; `poisons` says that the target may have lost data that it acknowledged, so its layer must never be
used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Side = Literal["source", "target"]


class BlockIOError(Exception):
    """Root of the errors of block input and output."""

    reason = "BLOCK_IO"
    retryable = False
    poisons = False


class ExtentError(BlockIOError):
    """An area list is wrong; ask again where it came from, nothing was copied."""

    reason = "EXTENTS_INVALID"

    def __init__(self, message: str, offset: int, length: int) -> None:
        super().__init__(message)
        self.offset = offset
        self.length = length


class InvalidExtentError(ExtentError):
    """An extent has a negative offset, no bytes, or an end above 2**63-1."""

    def __init__(self, offset: int, length: int) -> None:
        super().__init__(f"no extent can have offset {offset} and length {length}", offset, length)


class OverlappingExtentsError(ExtentError):
    """An extent begins before the end of the one before it."""

    def __init__(self, offset: int, length: int, previous_end: int) -> None:
        super().__init__(
            f"the extent at {offset}, length {length}, begins before the previous one ends ({previous_end})",
            offset,
            length,
        )
        self.previous_end = previous_end


class ExtentBeyondEndError(ExtentError):
    """An extent ends after the disk."""

    def __init__(self, offset: int, length: int, capacity: int) -> None:
        super().__init__(
            f"the extent at offset {offset}, length {length}, goes beyond the disk's end ({capacity} bytes)",
            offset,
            length,
        )
        self.capacity = capacity


class UnalignedExtentError(ExtentError):
    """A server only takes requests that are multiples of its block size; align the areas to it."""

    reason = "EXTENTS_UNALIGNED"

    def __init__(self, offset: int, length: int, block_size: int, side: Side) -> None:
        super().__init__(
            f"the extent at {offset}, length {length}, does not fit the {side}'s block size {block_size}",
            offset,
            length,
        )
        self.block_size = block_size
        self.side = side


class EntryFormatError(BlockIOError):
    """Bytes are no encoded batch of journal entries: of another version, or damaged."""

    reason = "JOURNAL_ENTRIES_INVALID"

    def __init__(self, detail: str, position: int) -> None:
        super().__init__(f"journal entries are damaged at byte {position}: {detail}")
        self.position = position


class JournalError(BlockIOError):
    """Something is wrong with a journal file."""

    reason = "JOURNAL_INVALID"

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(f"journal {path}: {message}")
        self.path = path


class JournalCorruptError(JournalError):
    """A journal's bytes are not those that were written; what it proves is lost from `offset` on.

    Attributes:
        offset: position in the file of the first part that cannot be trusted.
    """

    reason = "JOURNAL_CORRUPT"

    def __init__(self, path: Path, offset: int, detail: str) -> None:
        super().__init__(f"damaged at byte {offset}: {detail}", path)
        self.offset = offset
        self.detail = detail


class JournalVersionError(JournalError):
    """A journal was written by a newer version than this one."""

    reason = "JOURNAL_VERSION"

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(f"format {found} is newer than the known {known}: update Sendense", path)
        self.found = found
        self.known = known


class JournalMismatchError(JournalError):
    """A journal belongs to another layer, attempt, snapshot or area list.

    Attributes:
        field: the header field that differs.
        offset: position of the header in the file, always 0.
    """

    reason = "JOURNAL_MISMATCH"

    def __init__(self, path: Path, field: str, expected: object, found: object) -> None:
        super().__init__(f"its header (byte 0) has {field} {found!r}, expected {expected!r}", path)
        self.field = field
        self.expected = expected
        self.found = found
        self.offset = 0


class JournalSequenceError(JournalError):
    """A batch does not follow the last one, or is another one than was committed with its number.

    Attributes:
        sequence: the number that was offered.
        expected: the number that comes next.
    """

    reason = "JOURNAL_SEQUENCE"

    def __init__(self, path: Path, sequence: int, expected: int, detail: str) -> None:
        super().__init__(f"batch {sequence} refused ({detail}); the next is {expected}", path)
        self.sequence = sequence
        self.expected = expected


class JournalLockedError(JournalError):
    """Another process or writer has the journal open for appending."""

    reason = "JOURNAL_LOCKED"
    retryable = True

    def __init__(self, path: Path) -> None:
        super().__init__("another writer has it open", path)


class JournalWriteError(JournalError):
    """A batch could not be made durable; the layer is lost, since a repeated fsync proves nothing."""

    reason = "JOURNAL_WRITE"
    poisons = True

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"cannot be written: {detail}", path)


class EndpointError(BlockIOError):
    """A server cannot be used for this copy; nothing was copied."""

    reason = "ENDPOINT_UNSUITABLE"

    def __init__(self, message: str, side: Side, endpoint: str) -> None:
        super().__init__(f"{side} {endpoint}: {message}")
        self.side = side
        self.endpoint = endpoint


class ConnectError(EndpointError):
    """A server could not be reached, or refused the export."""

    reason = "ENDPOINT_UNREACHABLE"
    retryable = True


class SizeMismatchError(EndpointError):
    """A disk is smaller than its areas or than was said.

    Attributes:
        size: bytes that the server offers.
        needed: bytes that the copy needs.
    """

    reason = "ENDPOINT_TOO_SMALL"

    def __init__(self, side: Side, endpoint: str, size: int, needed: int) -> None:
        super().__init__(f"has {size} bytes, {needed} are needed", side, endpoint)
        self.size = size
        self.needed = needed


class ReadOnlyTargetError(EndpointError):
    """The target does not take writes."""

    reason = "TARGET_READ_ONLY"


class FlushUnsupportedError(EndpointError):
    """The target cannot flush, so nothing written to it could be committed."""

    reason = "TARGET_WITHOUT_FLUSH"


class CopyError(BlockIOError):
    """A copy ended early; its connections are closed, all after the last batch is to be copied again.

    Attributes:
        side: where it happened.
        offset: first byte of the request, or None.
        length: bytes of the request, or None.
        errno: the server's error number, or None.
    """

    reason = "COPY_FAILED"
    retryable = True

    def __init__(
        self,
        message: str,
        side: Side,
        offset: int | None = None,
        length: int | None = None,
        errno: int | None = None,
    ) -> None:
        where = "" if offset is None else f" at offset {offset}, length {length}"
        why = "" if errno is None else f": {os.strerror(errno)} (errno {errno})"
        super().__init__(f"{side}: {message}{where}{why}")
        self.side = side
        self.offset = offset
        self.length = length
        self.errno = errno


class SourceReadError(CopyError):
    """The source answered a read with an error; nothing was written for it."""

    reason = "SOURCE_READ"
    retryable = False


class TargetWriteError(CopyError):
    """The target answered a write or a zeroing with an error."""

    reason = "TARGET_WRITE"
    retryable = False


class TargetFlushError(CopyError):
    """The target answered a flush with an error: it may have dropped what it acknowledged before."""

    reason = "TARGET_FLUSH"
    retryable = False
    poisons = True


class ConnectionLostError(CopyError):
    """A connection ended while it was needed; `copy` may be called again for what no batch covers."""

    reason = "CONNECTION_LOST"


class StallError(CopyError):
    """A connection made no progress for too long, or one request was too slow."""

    reason = "COPY_STALLED"

    def __init__(self, message: str, side: Side, seconds: float, offset: int | None = None, length: int | None = None):
        super().__init__(message, side, offset, length)
        self.seconds = seconds


class CopyCancelledError(BlockIOError):
    """The caller cancelled the copy; batches reported before remain valid."""

    reason = "CANCELLED"
