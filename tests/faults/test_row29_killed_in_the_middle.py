"""Row 29: SIGKILL in the middle of a download or an export: never reported complete, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from restore_images import MIB, Images, Point, format_partition, images_of_session, make_full, put, whole
from restore_world import World, create_tables, eventually, left_on_host, neighbours, processes, rows
from test_restore_disks import ended, start

from sendense.restore.v1 import disk_pb2
from sendense_restore.config import RestoreSettings
from sendense_restore.guestfs_backend import guestfs_missing
from sendense_rpc.errors import RemoteError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    images = images_of_session(tmp_path_factory)
    directory = tmp_path_factory.mktemp("big")
    guest = whole(directory / "big.raw", 64 * MIB)
    format_partition(guest, 0, ["mkfs.ext4", "-q", "-O", "^has_journal"])
    with guest.mounted(0, directory / "m") as root:
        put(root, "big.bin", b"0123456789abcdef" * (3 * MIB))
    folder = directory / "disk-0"
    folder.mkdir()
    images.points["big"] = Point("backup-big-20251004010203", {0: make_full(guest.raw, folder / "full.qcow2")})
    return images


@asynccontextmanager
async def killed_and_restarted(world: World, images: Images) -> AsyncIterator[World]:
    """The world after a restart; at the end nothing may be left on the host."""
    settings = world.settings
    async with processes(settings) as service:
        process = await service.start()
        yield world
        process.kill()
        await process.wait()
        assert any(line.startswith("mount") for line in left_on_host(settings.root)), "nothing was left to clean"
        settings.socket("restore").unlink()
        process = await service.start()

        async def clean() -> bool:
            left = [line for line in left_on_host(settings.root) if f"process {process.pid} " not in line]
            return not world.fake_points.leases and not left

        await eventually(clean, 120)
        async with World(settings, images) as again:
            assert await again.mounts() == []
            mount = await again.mount("bare")
            await again.assert_files(mount.mount_id, "bare")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert left_on_host(settings.root) == []
    assert await rows(settings) == []


@pytest.fixture
async def world(sendense_home: Path, images: Images) -> AsyncIterator[World]:
    settings = RestoreSettings()
    await create_tables(settings)
    async with World(settings, images) as world, neighbours(world):
        yield world


async def slow_curl(world: World, mount_id: str, path: str, output: Path) -> asyncio.subprocess.Process:
    """A download that takes minutes; returns when its first bytes are there."""
    token = world.headers()["Authorization"]
    curl = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--limit-rate", "50k", "--unix-socket", str(world.settings.http_socket),
        "--header", f"Authorization: {token}", "--get", "--data-urlencode", f"path={path}",
        "--output", str(output), world.url(mount_id), stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip

    async def begun() -> bool:
        assert curl.returncode is None
        return bool(await asyncio.to_thread(output.exists))

    await eventually(begun, 60)
    return curl


async def test_twenty_mounts_downloads_exports_and_a_served_point_leave_nothing(
    world: World, images: Images, tmp_path: Path
) -> None:
    curls: list[asyncio.subprocess.Process] = []
    async with killed_and_restarted(world, images):
        # A passphrase of its own keeps each from being shared with the others: twenty openings.
        names = ["big", "full", "bare", "incr", "ntfs"] * 4
        mounts = await asyncio.gather(*(world.mount(n, passphrases=[f"{i}"]) for i, n in enumerate(names)))
        assert len({mount.mount_id for mount in mounts}) == 20
        big = [mount for mount in mounts if mount.backup_id.startswith("backup-big")]
        paths = ["/big.bin", "/"] * 10
        curls = await asyncio.gather(
            *(slow_curl(world, big[i % len(big)].mount_id, path, tmp_path / f"out{i}") for i, path in enumerate(paths))
        )
        done = await ended(world, (await start(world, "big", "qcow2")).export_id)
        assert done.state == "completed"
        request = disk_pb2.ServePointRequest(backup_id=images.points["big"].backup_id)
        await world.peer.call(world.disks.ServePoint, request)
        assert len(world.fake_exports.exports) == 1
        half_export = await start(world, "big", "vmdk")
        half_mount = asyncio.create_task(world.mount("incr", passphrases=["21"]))
        await asyncio.sleep(0.06)  # somewhere in the middle of it; it may also be done
    await asyncio.gather(half_mount, return_exceptions=True)
    for curl in curls:
        assert await asyncio.wait_for(curl.wait(), 60) != 0, "a broken download looks complete"
    asked = disk_pb2.GetDiskExportRequest(export_id=half_export.export_id)
    with pytest.raises(RemoteError):
        await world.peer.call(world.disks.GetDiskExport, asked, timeout=1)
    assert world.fake_exports.exports == {}
    images.assert_unchanged()


@pytest.mark.skipif(bool(guestfs_missing()), reason=guestfs_missing() or "guestfs is there")
async def test_a_micro_vm_and_its_files_are_gone_after_a_kill(
    world: World, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_RESTORE_GUESTFS_ACCELERATION", "emulate")
    async with killed_and_restarted(world, images):
        mount = await world.mount("bare", backend="guestfs")
        await world.assert_files(mount.mount_id, "bare")
        sockets = await asyncio.to_thread(_sockets_of, world.settings.root)
        assert len(sockets) == 1, "the micro-VM's socket is looked for in the wrong place"
    assert not await asyncio.to_thread(sockets[0].exists)


def _sockets_of(home: Path) -> list[Path]:
    """Directories of libguestfs' sockets, from the command lines of micro-VMs that have a disk below the home."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(home) in command:
            found += re.findall(rb"path=(/tmp/libguestfs[A-Za-z0-9]{6})/", command)
    return [Path(os.fsdecode(name)) for name in found]
