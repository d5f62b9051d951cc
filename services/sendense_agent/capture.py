"""One capture: a reader on one side, a lane to the export on the other, the copy engine between them in a thread.

Events wait in a short queue: when the caller does not take them, the engine pauses. However it ends (done, failed,
cancelled, the caller gone), the engine has stopped and the reader is gone before `run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import structlog

from sendense_agent.errors import CaptureFailed
from sendense_agent.model import Disk
from sendense_agent.readers.choice import OpenReader
from sendense_agent.readers.description import ReaderDescription
from sendense_agent.readers.nbdkit import Reader
from sendense_blockio.engine import Batch, CopyOptions, CopyProgress, Endpoint, copy
from sendense_blockio.errors import BlockIOError, CopyCancelledError, CopyError, EndpointError
from sendense_blockio.extents import Extent, total
from sendense_blockio.pace import Pace

log = structlog.get_logger()

PROGRESS_SECONDS = 0.5
WAITING_BATCHES = 4
END_SECONDS = 30.0
REAP_SECONDS = 1.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class CaptureJob:
    """What one capture does.

    Attributes:
        disk: The snapshot's disk.
        areas: What to copy, sorted and apart.
        export_name: Where to.
        fresh_target: Whether zeroes may be skipped.
        first_sequence: Number of the first batch.
    """

    disk: Disk
    areas: Sequence[Extent]
    export_name: str
    fresh_target: bool
    first_sequence: int


class Capture:
    """A running capture.

    Attributes:
        progress: Counters, kept by the engine.
        reader: Name of the reader that is used; empty while none is.
    """

    def __init__(self, job: CaptureJob, pace: Pace | None = None) -> None:
        self.job = job
        self._pace = pace
        self.progress = CopyProgress(bytes_total=total(job.areas))
        self.reader = ""
        self._cancel = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._batches: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._room = threading.Semaphore(WAITING_BATCHES)
        self._ended = asyncio.Event()

    def cancel(self) -> None:
        """Asks the engine to stop at the next chunk."""
        self._cancel.set()

    async def end(self) -> None:
        """Cancels, and waits until engine and reader are gone (or the caller takes too long to notice)."""
        self.cancel()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            log.warning("a cancelled capture has not ended yet", disk=str(self.job.disk))

    async def run(
        self, reader: AbstractAsyncContextManager[OpenReader], lane: AbstractAsyncContextManager[Path]
    ) -> AsyncGenerator[Batch | CopyProgress]:
        """Copies, and yields flushed batches and, about twice a second, progress; ends when all is reported.

        Args:
            reader: Lends the running reader.
            lane: Lends the socket that leads to the exports.

        Raises:
            CaptureFailed: The copy ended early.
            ReaderUnsuitable: No reader can read the disk.
            TunnelDown: There is no lane.
        """
        try:
            if self.job.areas:
                async with (
                    lane as socket,
                    reader as opened,
                    contextlib.aclosing(self._copy(opened.description, opened.process, socket)) as events,
                ):
                    self.reader = opened.description.name
                    async for event in events:
                        yield event
            yield self.progress
        finally:
            self._ended.set()

    async def _copy(
        self, description: ReaderDescription, reader: Reader, lane: Path
    ) -> AsyncGenerator[Batch | CopyProgress]:
        death = asyncio.create_task(reader.died())
        death.add_done_callback(lambda _: self.cancel())
        copying = self._start_engine(description, reader.socket, lane)
        # The thread's last batch was queued before its task is done: nothing comes after None.
        copying.add_done_callback(lambda _: self._batches.put_nowait(None))
        try:
            async with contextlib.aclosing(self._events()) as events:
                async for event in events:
                    yield event
            await self._outcome(copying, reader, death)
        finally:
            self.cancel()
            await _finished(copying)
            death.cancel()

    async def _events(self) -> AsyncGenerator[Batch | CopyProgress]:
        """Yields batches until the engine has ended, and progress in between."""
        due = time.monotonic() + PROGRESS_SECONDS
        while True:
            batch: Batch | None = None
            wait = max(0.0, due - time.monotonic())
            try:
                async with asyncio.timeout(wait):
                    batch = await self._batches.get()
                    if batch is None:
                        return
            except TimeoutError:
                due = time.monotonic() + PROGRESS_SECONDS
                yield self.progress
                continue
            yield batch
            self._room.release()

    async def _outcome(self, copying: asyncio.Future[None], reader: Reader, death: asyncio.Task[str]) -> None:
        """Raises what ended the copy early, if anything did."""
        try:
            await copying
        except (CopyCancelledError, CopyError, EndpointError) as error:
            if getattr(error, "side", "") == "source":
                await asyncio.wait([death], timeout=REAP_SECONDS)  # a cut connection is seen before a process's end
            if reader.ended:
                raise CaptureFailed(await death, side="source", cause="READER_DIED", retryable=True) from error
            raise _failure(error, reader) from error
        except BlockIOError as error:
            raise _failure(error, reader) from error

    def _start_engine(self, description: ReaderDescription, source: Path, lane: Path) -> asyncio.Future[None]:
        """Runs the engine in a thread of its own.

        The loop's threads are for short work, and there are six of them on two cores: so many copies, each for hours,
        would keep readers from being probed and lanes from being dialled again.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="capture")
        copying = self._loop.run_in_executor(thread, self._engine, description, source, lane)
        thread.shutdown(wait=False)  # it ends with its only work
        return copying

    def _engine(self, description: ReaderDescription, source: Path, lane: Path) -> None:
        job = self.job
        copy(
            Endpoint.unix(source, read_only=True),
            Endpoint.unix(lane, job.export_name),
            job.areas,
            CopyOptions(
                connections=description.connections,
                depth=description.depth,
                zeroes="skip" if job.fresh_target else "write",
                pace=self._pace,
            ),
            self._hand_over,
            self.progress,
            self._cancel,
            first_sequence=job.first_sequence,
            capacity=job.disk.capacity_bytes,
        )

    def _hand_over(self, batch: Batch) -> None:
        """Called in the engine's thread: waits until the caller has room for a batch."""
        while not self._room.acquire(timeout=_LOOK_SECONDS):
            if self._cancel.is_set():
                raise CopyCancelledError("nobody takes the batches any more")
        self._loop.call_soon_threadsafe(self._batches.put_nowait, batch)


async def _finished(task: asyncio.Future[None]) -> None:
    """Waits for the engine's thread, which cannot be abandoned, also while this task is being cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled() and task.exception() is not None:
        log.debug("the engine ended", error=str(task.exception()))
    if cancelled is not None:
        raise cancelled


def _failure(error: BlockIOError, reader: Reader) -> CaptureFailed:
    side = str(getattr(error, "side", ""))
    words = f" ({reader.last_words()})" if side == "source" and reader.last_words() else ""
    return CaptureFailed(
        f"{error}{words}",
        side=side,
        cause=error.reason,
        retryable=error.retryable,
        poisons=error.poisons,
        offset=getattr(error, "offset", None),
        length=getattr(error, "length", None),
    )
