"""Reads blocks of a snapshot's disk and tells their digests, to be compared with what was backed up (cbt-facts 8).

Neighbouring blocks are read with one request, and several requests are in flight on each connection. A block that
cannot be read ends the reading with an error: it is never taken for zeroes, nor left out. What a reader calls a hole is
read like the rest, since that may be what is wrong. A server that answers no more is given up: its reader is stopped.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbd
from blake3 import blake3

from sendense_agent.errors import CaptureFailed
from sendense_agent.readers.choice import OpenReader
from sendense_blockio.extents import Extent

PAGE_BLOCKS = 1000
"""Blocks of one answer."""
LARGEST_READ = 1 << 20
"""Longest request, and the longest block."""
STALL_SECONDS = 120.0
"""A page that takes longer is given up: 64 MiB in blocks of 64 KiB on the slowest link that is of use."""


async def digests_of(opened: OpenReader, blocks: Sequence[Extent]) -> AsyncGenerator[list[bytes]]:
    """Yields the BLAKE3 digests of blocks, in their order, in pages.

    Args:
        opened: The running reader.
        blocks: By offset, apart, each at most `LARGEST_READ`.

    Raises:
        CaptureFailed: A block could not be read.
    """
    with ThreadPoolExecutor(opened.description.connections, thread_name_prefix="audit") as threads:
        handles = [nbd.NBD() for _ in range(opened.description.connections)]
        try:
            for start in range(0, len(blocks), PAGE_BLOCKS):
                yield await _page(opened, threads, handles, blocks[start : start + PAGE_BLOCKS])
        finally:
            # nbdkit waits for its clients before it ends, so they leave first; a thread that still waits for an answer
            # keeps its own, and is freed by the end of the reader.
            handles.clear()
            await opened.process.stop()


async def _page(
    opened: OpenReader, threads: ThreadPoolExecutor, handles: Sequence[nbd.NBD], blocks: Sequence[Extent]
) -> list[bytes]:
    """Returns the digests of one page; each connection reads its share."""
    share = -(-len(blocks) // len(handles))
    shares = [blocks[first : first + share] for first in range(0, len(blocks), share)]
    loop = asyncio.get_running_loop()
    reading = [
        loop.run_in_executor(threads, _read, handle, opened.process.socket, part, opened.description.depth)
        for handle, part in zip(handles, shares, strict=False)
    ]
    death = asyncio.create_task(opened.process.died())
    done = asyncio.gather(*reading)
    awaited: list[asyncio.Future[Any]] = [done, death]
    try:
        await asyncio.wait(awaited, timeout=STALL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            why = death.result() if death.done() else f"no page of blocks within {STALL_SECONDS:g} s"
            raise CaptureFailed(f"audit: {why}", side="source", cause="READER_DIED", retryable=True)
        return list(itertools.chain.from_iterable(await done))
    except nbd.Error as error:
        words = opened.process.last_words()
        raise CaptureFailed(
            f"audit: a block cannot be read ({error.string}): {words or 'no message'}",
            side="source",
            cause="READ_FAILED",
            retryable=True,
        ) from error
    finally:
        death.cancel()
        done.cancel()


def _read(handle: nbd.NBD, socket: Path, blocks: Sequence[Extent], depth: int) -> list[bytes]:
    """Reads and digests blocks; blocking."""
    if handle.aio_is_created():
        handle.connect_unix(str(socket))
    found: list[bytes] = []
    asked: deque[tuple[int, bytearray, list[Extent]]] = deque()
    for run in runs(blocks):
        if len(asked) == depth:
            found += _answer(handle, *asked.popleft())
        data = bytearray(run[-1].end - run[0].offset)
        asked.append((handle.aio_pread(data, run[0].offset), data, run))
    while asked:
        found += _answer(handle, *asked.popleft())
    return found


def _answer(handle: nbd.NBD, cookie: int, data: bytearray, run: Sequence[Extent]) -> list[bytes]:
    """Waits for a request, and digests its blocks."""
    while not handle.aio_command_completed(cookie):
        handle.poll(-1)
    view = memoryview(data)
    begins = [block.offset - run[0].offset for block in run]
    return [blake3(view[begin : begin + block.length]).digest() for begin, block in zip(begins, run, strict=True)]


def runs(blocks: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Yields neighbouring blocks together, as many as fit into one request."""
    run: list[Extent] = []
    for block in blocks:
        if run and (run[-1].end != block.offset or block.end - run[0].offset > LARGEST_READ):
            yield run
            run = []
        run.append(block)
    if run:
        yield run
