"""The epoch rule (DESIGN 4): whoever loses the daemon copies again from the last flushed batch, and the image is right.

A daemon that dies loses what it acknowledged and did not flush. The writer here is the product's own copy engine; its
batches are those that were flushed, so what no batch covers is copied again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from pathlib import Path

import nbd
import pytest
from nbdd_process import RunningNbdd, nbdd_running, nbdkit, noise

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import Batch, CopyOptions, CopyProgress, copy
from sendense_blockio.errors import BlockIOError
from sendense_blockio.extents import Extent, subtract
from sendense_blockio.journal import Entry, covers_exactly, entry_extents
from sendense_exports.config import ExportsSettings
from sendense_qemu import img

MIB = 1 << 20
KILLS = 50

pytestmark = pytest.mark.faults


@pytest.fixture
def settings(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ExportsSettings:
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    monkeypatch.setenv("SENDENSE_EXPORTS_RESTART_PAUSE_SECONDS", "0.02")  # the daemon keeps dying here
    return ExportsSettings()


async def take_away(nbdd: RunningNbdd, name: str) -> None:
    (nbdd.settings.conf_dir / f"{name}.conf").unlink()
    await nbdd.reload()


async def test_the_daemon_is_killed_50_times_in_a_copy_and_the_image_is_right(
    settings: ExportsSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 192 * MIB
    areas = [Extent(0, size)]
    options = CopyOptions(chunk_size=256 << 10, batch_bytes=2 * MIB, stall_seconds=10.0)
    moments = random.Random(4)
    journal: list[Entry] = []
    sequence = 0
    epochs: list[int] = []
    recoveries: list[float] = []
    lost: list[int] = []
    ended: list[BlockIOError] = []

    def flushed(batch: Batch) -> None:
        nonlocal sequence
        assert batch.sequence == sequence + 1
        sequence = batch.sequence
        journal.extend(batch.entries)

    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        source = noise(images / "source.raw", size)
        await img.create_qcow2(images / "target.qcow2", size)
        nbdd.conf("target", images / "target.qcow2")
        status = await nbdd.reload()
        rate = images / "rate"
        rate.write_text("240M")  # bits a second: no copy is done before the last kill
        arguments = ("--filter=rate", "file", str(source), "rate=240M", f"rate-file={rate}", "burstiness=0.1")
        async with nbdkit(images / "source.sock", *arguments):
            target = Endpoint.unix(settings.nbd_socket, "target")

            async def run() -> CopyProgress:
                progress = CopyProgress()
                left = subtract(areas, entry_extents(journal))
                reader = Endpoint.unix(images / "source.sock", read_only=True)
                try:
                    await asyncio.to_thread(
                        copy, reader, target, left, options, flushed, progress, first_sequence=sequence + 1
                    )
                except BlockIOError as error:
                    assert getattr(error, "side", "") == "target", error  # noqa: PT017
                    assert not error.poisons  # noqa: PT017
                    ended.append(error)
                    lost.append(progress.bytes_done - progress.bytes_committed)
                return progress

            for kill in range(1, KILLS + 1):
                work = asyncio.create_task(run())
                await asyncio.sleep(moments.uniform(0.01, 0.12))
                assert not work.done(), f"the copy ended before it was killed: {ended}"
                os.kill(status.daemon_pid, signal.SIGKILL)
                killed = time.monotonic()
                await work
                status = await nbdd.wait(
                    lambda s, n=kill + 1: s.daemon_starts >= n and s.exports["target"].state == "serving"  # type: ignore[misc]
                )
                recoveries.append(time.monotonic() - killed)
                epochs.append(status.exports["target"].epoch)
            rate.write_text("0")
            await run()
        assert covers_exactly(journal, areas)
        await take_away(nbdd, "target")
        assert (await img.compare(source, "raw", images / "target.qcow2", "qcow2")).identical
        assert (await img.check(images / "target.qcow2")).is_sound
    assert epochs == list(range(2, KILLS + 2)), "each death began one epoch"
    assert sum(1 for count in lost if count) > KILLS // 2, "the kills hit a copy with bytes that were not flushed"
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{KILLS} kills: {sum(lost) / MIB:.0f} MiB were not flushed and copied again; serving again after"
            f" {1000 * statistics.median(recoveries):.0f} ms (median), {1000 * max(recoveries):.0f} ms (longest)"
        )


@pytest.mark.parametrize("follows_the_rule", [True, False])
async def test_without_the_epoch_rule_the_image_would_be_wrong_and_no_check_would_say_so(
    settings: ExportsSettings, follows_the_rule: bool
) -> None:
    """A writer that goes on behind the last acknowledged byte, instead of the last flushed one, loses data."""
    size, first_part, second_part = 64 * MIB, 16 * MIB, 32 * MIB

    def write(start: int, end: int, data: bytes, *, flush: bool) -> None:
        handle = nbd.NBD()
        handle.set_export_name("target")
        handle.connect_unix(str(settings.nbd_socket))
        for offset in range(start, end, MIB):
            handle.pwrite(data[offset : offset + MIB], offset)
        if flush:
            handle.flush()

    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        source = noise(images / "source.raw", size)
        data = source.read_bytes()
        await img.create_qcow2(images / "target.qcow2", size)
        nbdd.conf("target", images / "target.qcow2")
        status = await nbdd.reload()
        await asyncio.to_thread(write, 0, first_part, data, flush=True)
        await asyncio.to_thread(write, first_part, second_part, data, flush=False)  # every byte was acknowledged
        os.kill(status.daemon_pid, signal.SIGKILL)
        await nbdd.wait(lambda s: s.daemon_starts == 2 and s.exports["target"].state == "serving")
        go_on_at = first_part if follows_the_rule else second_part
        await asyncio.to_thread(write, go_on_at, size, data, flush=True)
        await take_away(nbdd, "target")
        assert (await img.check(images / "target.qcow2")).is_sound, "in either case"
        compared = await img.compare(source, "raw", images / "target.qcow2", "qcow2")
        assert compared.identical == follows_the_rule, compared.detail
