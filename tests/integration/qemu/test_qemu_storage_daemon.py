"""A real qemu-storage-daemon over QMP: served bytes, locks, TRIM, death and take-over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nbd
import pytest

from sendense_qemu import img
from sendense_qemu.cut_off import wake_cut_off_writers
from sendense_qemu.errors import StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.nodes import file_access, qcow2_node, raw_node, refuse_discard
from sendense_qemu.process import run
from sendense_qemu.storage_daemon import StorageDaemon

MIB = 1 << 20


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[StorageDaemon]:
    daemon = await StorageDaemon.start(folder / "d.qmp", log_path=folder / "d.log")
    try:
        yield daemon
    finally:
        await daemon.stop()


async def overlay(folder: Path) -> list[Path]:
    """An overlay on a full that holds 0x01 everywhere; returns the chain."""
    full, incr = folder / "full.qcow2", folder / "incr.qcow2"
    await img.create_qcow2(full, 8 * MIB)
    await run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 8M", str(full)], img.QUICK)
    full.chmod(0o444)
    await img.create_qcow2(incr, None, backing_name=full.name)
    return [incr, full]


def client(folder: Path, name: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix(str(folder / "n.sock"))
    return handle


async def test_a_chain_is_served_and_written_through_libnbd(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    async with running(short_tmp) as daemon:
        await daemon.serve_nbd(short_tmp / "n.sock")
        access = file_access(chain[0], daemon.aio)
        await daemon.add_node(qcow2_node("disk", chain, access, read_only=False))
        await daemon.add_nbd_export("e1", "disk", "disk-0", writable=True)
        assert await daemon.node_size("disk") == 8 * MIB

        def copy() -> None:
            handle = client(short_tmp, "disk-0")
            assert handle.pread(4096, MIB) == b"\1" * 4096
            handle.pwrite(b"\2" * 100_000, MIB + 100)
            handle.zero(70_000, 3 * MIB + 5)
            handle.flush()
            handle.shutdown()

        await asyncio.to_thread(copy)
        with pytest.raises(StorageDaemonError):
            await daemon.remove_node("disk")
        await daemon.remove_export("e1", mode="hard")
        while await daemon.list_exports():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await daemon.remove_node("disk")
        assert "disk" not in await daemon.node_names()
    expected = bytearray(b"\1" * (8 * MIB))
    expected[MIB + 100 : MIB + 100_100] = b"\2" * 100_000
    expected[3 * MIB + 5 : 3 * MIB + 70_005] = bytes(70_000)
    (short_tmp / "expected.raw").write_bytes(expected)
    assert (await img.compare(chain[0], "qcow2", short_tmp / "expected.raw", "raw")).identical
    assert (await img.check(chain[0])).is_sound
    assert not (short_tmp / "d.qmp").exists()


async def test_trim_in_an_overlay_shows_no_old_data(short_tmp: Path) -> None:
    """TRIM is refused, so no client takes what it trimmed for zeroes; WRITE_ZEROES is exact."""
    chain = await overlay(short_tmp)
    async with running(short_tmp) as daemon:
        await daemon.serve_nbd(short_tmp / "n.sock")
        access = file_access(chain[0], daemon.aio)
        await daemon.add_node(refuse_discard(qcow2_node("disk", chain, access, read_only=False)))
        await daemon.add_nbd_export("e1", "disk", "disk-0", writable=True)

        def trim() -> None:
            handle = client(short_tmp, "disk-0")
            handle.pwrite(b"\2" * 200_000, 0)
            for offset, length in ((0, 65536), (65536 + 4096, 4096), (MIB, 65536), (2 * MIB + 4096, 200_000)):
                with pytest.raises(nbd.Error) as caught:
                    handle.trim(length, offset)
                assert caught.value.errno == "EPERM"
            assert handle.pread(200_000, 0) == b"\2" * 200_000
            assert handle.pread(MIB, 2 * MIB) == b"\1" * MIB
            handle.zero(200_001, 4 * MIB + 3)
            assert handle.pread(200_003, 4 * MIB + 2) == b"\1" + bytes(200_001) + b"\1"
            handle.shutdown()

        await asyncio.to_thread(trim)


async def test_a_second_writer_and_a_check_are_refused_while_one_writes(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    async with running(short_tmp) as daemon:
        access = file_access(chain[0], daemon.aio)
        await daemon.add_node(qcow2_node("one", chain, access, read_only=False))
        with pytest.raises(StorageDaemonError) as caught:
            await daemon.add_node(qcow2_node("two", chain, access, read_only=False))
        assert caught.value.is_locked
        with pytest.raises(img.QemuImgError) as refused:
            await img.check(chain[0])
        assert refused.value.is_locked
        # the parent may be read, and be the parent of another, while its child is written
        await daemon.add_node(qcow2_node("base", chain[1:], access, read_only=True))


async def test_the_daemon_opens_nothing_that_it_was_not_told(short_tmp: Path) -> None:
    """A header that names another backing file than the explicit chain has no effect."""
    chain = await overlay(short_tmp)
    await img.create_qcow2(short_tmp / "evil.qcow2", 8 * MIB)
    await img.rebase(chain[0], "evil.qcow2", header_only=True)
    (short_tmp / "evil.qcow2").unlink()
    async with running(short_tmp) as daemon:
        await daemon.serve_nbd(short_tmp / "n.sock")
        await daemon.add_node(qcow2_node("disk", chain, file_access(chain[0], daemon.aio), read_only=True))
        await daemon.add_nbd_export("e1", "disk", "d", writable=False)
        handle = await asyncio.to_thread(client, short_tmp, "d")
        assert await asyncio.to_thread(handle.pread, 512, 0) == b"\1" * 512
        await asyncio.to_thread(handle.shutdown)


async def test_a_file_that_ends_within_a_block_is_not_left_to_io_uring(short_tmp: Path) -> None:
    """qemu 7.2 may never answer a read that io_uring cut short (`WHOLE_BLOCK`): with it, this test hung at times."""
    raw = short_tmp / "odd.raw"
    raw.write_bytes(b"\1" * (MIB + 700))
    await img.create_qcow2(short_tmp / "new.qcow2", 10 * MIB)
    async with running(short_tmp) as daemon:
        await daemon.serve_nbd(short_tmp / "n.sock")
        access = file_access(raw, daemon.aio)
        odd = raw_node("odd", raw, access, read_only=True)
        new = qcow2_node("new", [short_tmp / "new.qcow2"], access, read_only=False)
        assert odd["file"]["aio"] != "io_uring"
        assert new["file"]["aio"] == access.aio, "our own images end with a whole block"
        await daemon.add_node(odd)
        await daemon.add_nbd_export("e", "odd", "odd", writable=False)
        handle = await asyncio.to_thread(client, short_tmp, "odd")

        def read_the_end() -> None:
            for _ in range(500):
                buffer = nbd.Buffer(1024)
                cookie = handle.aio_pread(buffer, MIB)
                deadline = time.monotonic() + 60
                while not handle.aio_command_completed(cookie):
                    assert time.monotonic() < deadline, "a read was never answered"
                    handle.poll(1000)
                assert buffer.to_bytearray() == b"\1" * 700 + bytes(324)
            handle.shutdown()

        await asyncio.to_thread(read_the_end)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="to look into another process takes root")
async def test_a_client_that_takes_no_answers_does_not_hold_a_removed_export(short_tmp: Path) -> None:
    raw = short_tmp / "disk.raw"
    raw.write_bytes(bytes(8 * MIB))
    async with running(short_tmp) as daemon:
        await daemon.serve_nbd(short_tmp / "n.sock")
        await daemon.add_node(raw_node("disk", raw, file_access(raw, daemon.aio), read_only=True))
        await daemon.add_nbd_export("e1", "disk", "slow", writable=False)
        slow = await asyncio.to_thread(client, short_tmp, "slow")
        for _ in range(8):  # asked for, and never looked at again
            slow.aio_pread(nbd.Buffer(MIB), 0)
        await daemon.add_nbd_export("e2", "disk", "good", writable=False)
        good = await asyncio.to_thread(client, short_tmp, "good")
        await daemon.remove_export("e1", mode="hard")
        async with asyncio.timeout(5):
            while "e1" in {export.id for export in await daemon.list_exports()}:
                await asyncio.to_thread(wake_cut_off_writers, daemon.pid)
                await asyncio.sleep(0.05)
        assert await asyncio.to_thread(good.pread, MIB, 0) == bytes(MIB)
        await asyncio.to_thread(good.shutdown)
        with pytest.raises(OSError, match=r"\[Errno"):
            await asyncio.to_thread(wake_cut_off_writers, 2**22 + 1)  # no such process


@pytest.mark.faults
async def test_death_is_noticed_at_once_and_named(short_tmp: Path) -> None:
    daemon = await StorageDaemon.start(short_tmp / "d.qmp", log_path=short_tmp / "d.log")
    os.kill(daemon.pid, signal.SIGKILL)
    assert "-9" in await asyncio.wait_for(daemon.gone, 5)
    with pytest.raises(StorageDaemonGoneError):
        await daemon.list_exports()
    await daemon.stop()
    assert not (short_tmp / "d.qmp").exists()


async def test_a_running_daemon_is_taken_up_and_its_death_is_seen(short_tmp: Path) -> None:
    raw = short_tmp / "disk.raw"
    raw.write_bytes(os.urandom(MIB))
    first = await StorageDaemon.start(short_tmp / "d.qmp", log_path=short_tmp / "d.log")
    await first.add_node(raw_node("disk", raw, file_access(raw, first.aio), read_only=True))
    await first.detach()
    second = await StorageDaemon.attach(short_tmp / "d.qmp")
    assert second.pid == first.pid
    assert "disk" in await second.node_names()
    os.kill(second.pid, signal.SIGKILL)
    await asyncio.wait_for(second.gone, 5)
    await second.stop()
    with pytest.raises(StorageDaemonError):
        await StorageDaemon.attach(short_tmp / "d.qmp")


async def test_a_daemon_that_cannot_start_says_why(short_tmp: Path) -> None:
    with pytest.raises(StorageDaemonError, match="longer than"):
        await StorageDaemon.start(short_tmp / ("x" * 120), log_path=short_tmp / "d.log")
    with pytest.raises(StorageDaemonError, match="missing"):
        await StorageDaemon.start(short_tmp / "missing" / "d.qmp", log_path=short_tmp / "d.log")


async def test_a_lost_monitor_connection_is_made_again(short_tmp: Path) -> None:
    async with running(short_tmp) as daemon:
        await daemon._monitor.close()
        assert await daemon.list_exports() == []
