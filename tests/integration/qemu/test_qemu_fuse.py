"""A qcow2 image as a raw file: content, holes through a loop device, and no mount left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sendense_qemu import img
from sendense_qemu.errors import StorageDaemonError
from sendense_qemu.fuse import OVERLAY_CLUSTER_SIZE, FuseFile, clear_mountpoint
from sendense_qemu.process import run

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="FUSE is missing: no /dev/fuse")


async def overlay(folder: Path) -> list[Path]:
    full, top = folder / "full.qcow2", folder / "overlay.qcow2"
    await img.create_qcow2(full, 8 * MIB)
    await run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 8M", str(full)], img.QUICK)
    full.chmod(0o444)
    await img.create_qcow2(top, None, backing_name=full.name, cluster_size=OVERLAY_CLUSTER_SIZE)
    return [top, full]


async def test_the_file_shows_the_image_and_takes_writes_into_the_overlay_only(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    before = chain[1].read_bytes()
    served = await FuseFile.serve(chain, short_tmp / "disk.img", writable=True, run_dir=short_tmp)

    def use() -> None:
        with (short_tmp / "disk.img").open("r+b") as file:
            assert file.seek(0, os.SEEK_END) == 8 * MIB
            file.seek(MIB)
            assert file.read(4096) == b"\1" * 4096
            file.seek(MIB + 1)
            file.write(b"\2" * 5000)

    await asyncio.to_thread(use)
    await served.close()
    assert (short_tmp / "disk.img").stat().st_size == 0
    assert chain[1].read_bytes() == before
    await run(["qemu-io", "-f", "qcow2", "-c", f"read -q -P 2 {MIB + 1} 5000", str(chain[0])], img.QUICK)


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")
async def test_holes_punched_through_a_loop_device_read_as_zeroes(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    served = await FuseFile.serve(chain, short_tmp / "disk.img", writable=True, run_dir=short_tmp)

    def punch() -> None:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(short_tmp / "disk.img")], check=True, capture_output=True, text=True
        )
        loop = made.stdout.strip()
        try:
            for how in ([], ["--zeroout"]):
                start = MIB + 4096 if how else 3 * MIB + 4096
                span = ["--offset", str(start), "--length", "12288"]
                subprocess.run(["blkdiscard", *how, *span, loop], check=True)
                with Path(loop).open("rb") as device:
                    device.seek(start - 4096)
                    assert device.read(20480) == b"\1" * 4096 + bytes(12288) + b"\1" * 4096
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)

    try:
        await asyncio.to_thread(punch)
    finally:
        await served.close()


async def test_a_locked_image_is_refused_and_nothing_stays_mounted(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    served = await FuseFile.serve(chain, short_tmp / "one.img", writable=True, run_dir=short_tmp)
    try:
        with pytest.raises(StorageDaemonError) as caught:
            await FuseFile.serve(chain, short_tmp / "two.img", writable=True, run_dir=short_tmp)
        assert caught.value.is_locked
        assert str(short_tmp / "two.img") not in Path("/proc/self/mounts").read_text()  # noqa: ASYNC240
    finally:
        await served.close()


@pytest.mark.faults
async def test_what_a_killed_daemon_leaves_mounted_is_taken_away(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    served = await FuseFile.serve(chain, short_tmp / "disk.img", writable=True, run_dir=short_tmp)
    os.kill(served.daemon.pid, signal.SIGKILL)
    await asyncio.wait_for(served.daemon.gone, 5)
    await served.close()
    await clear_mountpoint(short_tmp / "disk.img")
    assert str(short_tmp) not in Path("/proc/self/mounts").read_text()  # noqa: ASYNC240
    assert (short_tmp / "disk.img").stat().st_size == 0


async def test_a_missing_layer_is_named(short_tmp: Path) -> None:
    chain = await overlay(short_tmp)
    with pytest.raises(FileNotFoundError, match=r"gone\.qcow2"):
        await FuseFile.serve(
            [chain[0], short_tmp / "gone.qcow2"], short_tmp / "disk.img", writable=True, run_dir=short_tmp
        )
