"""How a copy runs: connections, sizes, bounds and deadlines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sendense_blockio.pace import Pace


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Settings of one copy; the defaults were measured best for one job on two cores.

    Attributes:
        connections: lanes, each with one connection and one thread on either side. For `vddk` 1, for `https`
            4–8, with three or more jobs at once 1.
        depth: requests of full size in flight on each connection.
        chunk_size: bytes of the largest request, a multiple of 4096; servers' smaller limits win.
        max_bytes_in_flight: bound over all lanes; None stands for connections × depth × chunk_size. Memory is
            at most twice this.
        batch_bytes: what a lost connection costs at most to copy again: data bytes that are begun and not yet reported.
            A batch is flushed when it has half of that.
        batch_seconds: a batch is closed after this time even when it is smaller.
        zeroes: `write` zeroes the target where the source is zero (an increment); `skip` leaves it alone, for
            a target that was never written (a fresh full).
        source_holes: ask the source for its holes and do not read them; None: on `skip` only, since the
            question costs a round trip for each area of an increment.
        stall_seconds: a connection with requests in flight on which nothing moves for this long fails the
            copy; also the deadline for connecting.
        request_seconds: a single request that takes longer fails the copy: a link slowed to a trickle moves
            always.
        pace: a limit of data bytes per second, which other copies may share; None for none. Holes are free.
    """

    connections: int = 2
    depth: int = 4
    chunk_size: int = 1 << 20
    max_bytes_in_flight: int | None = None
    batch_bytes: int = 128 << 20
    batch_seconds: float = 5.0
    zeroes: Literal["write", "skip"] = "write"
    source_holes: bool | None = None
    stall_seconds: float = 60.0
    request_seconds: float = 300.0
    pace: Pace | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 64:
            raise ValueError(f"connections must be 1 to 64, not {self.connections}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, not {self.depth}")
        if self.chunk_size % 4096 or not 4096 <= self.chunk_size <= 32 << 20:
            raise ValueError(f"chunk_size must be a multiple of 4096 from 4 KiB to 32 MiB, not {self.chunk_size}")
        if self.max_bytes_in_flight is not None and self.max_bytes_in_flight < self.chunk_size:
            raise ValueError(f"max_bytes_in_flight must be at least one chunk, not {self.max_bytes_in_flight}")
        if min(self.batch_bytes, self.batch_seconds, self.stall_seconds, self.request_seconds) <= 0:
            raise ValueError("batch_bytes, batch_seconds, stall_seconds and request_seconds must be above 0")
        if self.zeroes not in {"write", "skip"}:
            raise ValueError(f"zeroes must be 'write' or 'skip', not {self.zeroes!r}")

    @property
    def lane_bytes(self) -> int:
        """Bytes that one lane may have in flight; at least one chunk."""
        if self.max_bytes_in_flight is None:
            return self.depth * self.chunk_size
        share = self.max_bytes_in_flight // self.connections
        return max(self.chunk_size, min(share, self.depth * self.chunk_size))

    @property
    def asks_for_holes(self) -> bool:
        """Whether the source's holes are to be asked for."""
        return self.zeroes == "skip" if self.source_holes is None else self.source_holes
