"""Buffers that live as long as a lane: memory from the system is faulted in once, not for every request."""

from __future__ import annotations

import nbd

_SMALLEST = 4096


class BlockBuffer:
    """Memory of one request.

    Attributes:
        view: exactly the request's bytes.
        footprint: bytes of memory that it occupies.
    """

    __slots__ = ("_memory", "_shared", "footprint", "view")

    def __init__(self, memory: memoryview, length: int) -> None:
        """Takes the first `length` bytes of `memory`."""
        self._memory = memory
        self.footprint = len(memory)
        self.view = memory if length == self.footprint else memory[:length]
        self._shared = nbd.Buffer.from_buffer(self.view)

    def is_zero(self) -> bool:
        """Whether every byte is zero; stops at the first that is not."""
        return bool(self._shared.is_zero())

    @property
    def memory(self) -> memoryview:
        """The whole memory, to be reused."""
        return self._memory


class BufferPool:
    """Gives out buffers and takes them back; holds at most `limit` bytes in reserve. For one thread."""

    def __init__(self, largest: int, limit: int) -> None:
        """Starts empty.

        Args:
            largest: bytes of the longest request.
            limit: bytes that may be held in reserve.
        """
        self._largest = largest
        self._limit = limit
        self._reserve = 0
        self._free: dict[int, list[BlockBuffer]] = {}

    def footprint(self, length: int) -> int:
        """Returns the memory that a request of `length` bytes occupies: sizes are powers of two up to the largest."""
        size = max(_SMALLEST, 1 << (length - 1).bit_length())
        return min(size, self._largest) if length <= self._largest else length

    def take(self, length: int) -> BlockBuffer:
        """Returns a buffer of `length` bytes with whatever was in it before."""
        size = self.footprint(length)
        free = self._free.get(size)
        if free:
            self._reserve -= size
            buffer = free.pop()
            return buffer if len(buffer.view) == length else BlockBuffer(buffer.memory, length)
        return BlockBuffer(memoryview(bytearray(size)), length)

    def give_back(self, buffer: BlockBuffer) -> None:
        """Takes a buffer that no request uses any more."""
        if self._reserve + buffer.footprint <= self._limit:
            self._reserve += buffer.footprint
            self._free.setdefault(buffer.footprint, []).append(buffer)
