"""Bytes that callbacks bring and a coroutine reads: used while a connection is negotiated, before it is only piped."""

from __future__ import annotations

import asyncio


class StreamEnded(Exception):
    """The stream ended before all wanted bytes came."""


class ByteStream:
    """A buffer between callbacks (`feed`) and one reader (`read`).

    Attributes:
        held: bytes that were fed and not yet read.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def held(self) -> int:
        """Bytes that wait to be read."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Adds bytes at the end."""
        self._buffer += data
        self._changed.set()

    def end(self) -> None:
        """Says that no more bytes come."""
        self._ended = True
        self._changed.set()

    async def read(self, length: int) -> bytes:
        """Returns exactly `length` bytes.

        Raises:
            StreamEnded: The stream ended before.
        """
        while len(self._buffer) < length:
            if self._ended:
                raise StreamEnded
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def take_rest(self) -> bytes:
        """Returns what was fed and not read, and forgets it."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
