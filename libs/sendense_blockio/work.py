"""The work of a copy, handed out piece by piece to its lanes; holes are recognised without reading.

Memory does not grow with the disk: pieces are made when asked for, and the source's map is asked for in
windows.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import nbd

from sendense_blockio.connection import Connection
from sendense_blockio.errors import ConnectionLostError, SourceReadError
from sendense_blockio.extents import Extent

MAP_WINDOW_BYTES = 128 << 20
"""How much of the source one question about its holes covers; servers with slow answers stay within a deadline."""


class Piece(NamedTuple):
    """What one request does: `length` bytes at `offset`; `hole` when the source says that they read as zeroes."""

    offset: int
    length: int
    hole: bool


class HoleMap:
    """Asks the source which bytes read as zeroes (`base:allocation`), in ascending order."""

    def __init__(self, connection: Connection) -> None:
        """Takes a connection that negotiated `base:allocation`."""
        self._connection = connection
        self._known: deque[tuple[int, int, bool]] = deque()

    @staticmethod
    def supported_by(connection: Connection) -> bool:
        """Tells whether the server knows its holes."""
        return bool(connection.require_handle().can_meta_context(nbd.CONTEXT_BASE_ALLOCATION))

    def pieces(self, extent: Extent) -> Iterator[Piece]:
        """Yields the parts of an extent, each a hole or data; extents come in ascending order.

        Raises:
            SourceReadError: the server answered with an error, or with a map that makes no progress.
            ConnectionLostError: the connection ended.
            StallError: no answer within the deadline.
        """
        position = extent.offset
        while position < extent.end:
            while self._known and self._known[0][1] <= position:
                self._known.popleft()
            if not self._known or self._known[0][0] > position:
                self._ask(position)
                continue
            _, known_end, hole = self._known[0]
            end = min(known_end, extent.end)
            yield Piece(position, end - position, hole)
            position = end

    def _ask(self, offset: int) -> None:
        handle = self._connection.require_handle()
        length = min(MAP_WINDOW_BYTES, self._connection.size - offset)
        found: list[int] = []
        outcome: list[int] = []

        def on_extents(context: str, _offset: int, entries: list[int], _error: object) -> int:
            if context == nbd.CONTEXT_BASE_ALLOCATION and not found:
                found.extend(entries)
            return 0

        def on_done(error: object) -> int:
            outcome.append(error.value)  # type: ignore[attr-defined]
            return 1

        try:
            handle.aio_block_status(length, offset, on_extents, on_done)
        except nbd.Error as error:
            raise ConnectionLostError(f"block status: {error}", "source", offset, length) from error
        self._connection.wait(lambda: bool(outcome), "block status")
        if outcome[0]:
            raise SourceReadError("block status failed", "source", offset, length, outcome[0])
        self._known.clear()
        position = offset
        for size, flags in zip(found[::2], found[1::2], strict=True):
            if size > 0:
                self._known.append((position, position + size, bool(flags & nbd.STATE_ZERO)))
            position += size
        if not self._known:
            raise SourceReadError("block status told nothing", "source", offset, length)


class WorkQueue:
    """Hands out pieces in ascending order; any lane may ask."""

    def __init__(self, areas: Iterable[Extent], chunk_size: int, hole_size: int, holes: HoleMap | None = None) -> None:
        """Takes checked areas.

        Args:
            areas: sorted, without overlaps.
            chunk_size: data is cut at its multiples.
            hole_size: holes are cut at its multiples.
            holes: the source's map, or None to read everything.
        """
        self._lock = threading.Lock()
        self._pieces = self._cut(areas, chunk_size, hole_size, holes)

    def take(self) -> Piece | None:
        """Returns the next piece, or None when there is none left; may wait for the source's map."""
        with self._lock:
            return next(self._pieces, None)

    @staticmethod
    def _cut(areas: Iterable[Extent], chunk_size: int, hole_size: int, holes: HoleMap | None) -> Iterator[Piece]:
        for area in areas:
            parts = holes.pieces(area) if holes is not None else (Piece(area.offset, area.length, hole=False),)
            for start, length, hole in parts:
                unit = hole_size if hole else chunk_size
                position, end = start, start + length
                while position < end:
                    stop = min(position - position % unit + unit, end)
                    yield Piece(position, stop - position, hole)
                    position = stop
