"""Copies last for hours: however many there are, they never keep the agent's loop from its short work in threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fakes.nbd_server import make_qcow2, storage_daemon
from sendense_agent.capture import Capture, CaptureJob
from sendense_agent.errors import CaptureFailed
from sendense_agent.model import Disk
from sendense_agent.readers.choice import OpenReader
from sendense_agent.readers.description import ReaderDescription
from sendense_agent.readers.nbdkit import running_reader
from sendense_blockio.engine import Batch
from sendense_blockio.extents import Extent
from sendense_blockio.pace import Pace

MIB = 1 << 20
LASTING = 3
"""Copies that do not end; the loop has one thread for all its short work."""


def disk(number: int) -> Disk:
    return Disk(number, f"id-{number}", f"Hard disk {number}", MIB, f"[ds] vm/{number}.vmdk", "", "")


def job(number: int) -> CaptureJob:
    return CaptureJob(disk(number), [Extent(0, MIB)], f"disk-{number}", fresh_target=True, first_sequence=1)


@contextlib.asynccontextmanager
async def reader(directory: Path, number: int, file: Path) -> AsyncIterator[OpenReader]:
    described = ReaderDescription("test", "file", {"file": str(file)})
    async with running_reader(described, directory, disk(number)) as process:
        yield OpenReader(described, process)


@contextlib.asynccontextmanager
async def lane(socket: Path) -> AsyncIterator[Path]:
    yield socket


async def test_copies_that_last_leave_the_loops_threads_to_short_work(short_tmp: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        source, socket = short_tmp / "source", short_tmp / "nbd.sock"
        source.write_bytes(b"\1" * MIB)
        images = {f"disk-{number}": make_qcow2(short_tmp / f"{number}.qcow2", MIB) for number in range(LASTING + 1)}
        endless = Pace(1)
        endless.take(1 << 40)  # at a byte a second: nobody begins before that is over

        async def run(capture: Capture, number: int) -> list[Batch]:
            events = capture.run(reader(short_tmp / "readers", number, source), lane(socket))
            return [event async for event in events if isinstance(event, Batch)]

        async with storage_daemon(socket, images):
            lasting = [Capture(job(number), endless) for number in range(LASTING)]
            copies = [asyncio.create_task(run(capture, number)) for number, capture in enumerate(lasting)]
            async with asyncio.timeout(60):
                while not all(capture.reader for capture in lasting):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                batches = await run(Capture(job(LASTING)), LASTING)
            assert sum(batch.bytes_covered for batch in batches) == MIB
            assert not any(copy.done() for copy in copies)
            for capture in lasting:
                capture.cancel()
            ends = await asyncio.gather(*copies, return_exceptions=True)
            assert [type(end) for end in ends] == [CaptureFailed] * LASTING
