"""One contract for both back ends: what is browsed and downloaded equals the source, whatever lies below.

The images are crash-consistent: copied while mounted and written to. A micro-VM takes seconds to start where it is
emulated, so each test of it does much.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from restore_images import CANARY, Images, sha256
from restore_stacks import FAT_BIG, NTFS_BIG, PASSPHRASE, PLAIN, WITHOUT_UNIX, Stack, build_disks
from restore_trees import Source, assert_tar_equals, some_pieces
from restore_ways_out import SECRET, assert_no_way_out
from restore_world import World, left_on_host, restore_world

from sendense.restore.v1 import restore_pb2
from sendense_restore.guestfs_backend import EMULATED, guestfs_missing
from sendense_restore.names import escape
from sendense_rpc.errors import RemoteError

pytestmark = pytest.mark.timeout(900)
needs_guestfs = pytest.mark.skipif(bool(guestfs_missing()), reason=guestfs_missing() or "guestfs is there")
ACCELERATION = os.environ.get("SENDENSE_TEST_GUESTFS", "emulate")
"""`auto` where KVM works."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return build_disks(tmp_path_factory.mktemp("stacks") / "disks")


def images_of(stack: Stack) -> Images:
    layers = stack.point.layers.values()
    return Images({"it": stack.point}, {layer: sha256(layer) for layer in layers})


def assert_nowhere(secret: bytes, home: Path) -> None:
    """The passphrase is nowhere but in the memory of those that needed it."""
    for found in home.rglob("*"):
        if found.is_file() and found.suffix in (".log", ".json", ".sqlite", ".sqlite-wal"):
            assert secret not in found.read_bytes(), found
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            assert secret not in command


async def fetch(world: World, mount_id: str, path: str, target: Path) -> Path:
    async with world.get(mount_id, path) as response:
        assert response.status == 200, await response.text()
        with target.open("wb") as file:
            async for chunk in response.content.iter_chunked(1 << 20):
                await asyncio.to_thread(file.write, chunk)
    return target


async def assert_volume(world: World, mount_id: str, name: str, source: Source, scratch: Path) -> None:
    unix = name not in WITHOUT_UNIX
    tar = await fetch(world, mount_id, f"{name}:/", scratch / "volume.tar")
    await asyncio.to_thread(assert_tar_equals, tar, source, unix=unix, links=unix)
    for path, offset, content in await asyncio.to_thread(some_pieces, tar, source, 7, 12):
        wanted = {"Range": f"bytes={offset}-{offset + len(content) - 1}"}
        async with world.get(mount_id, f"{name}:/{escape(path)}", **wanted) as response:
            assert (response.status, await response.read()) == (206, content), path
    tar.unlink()
    # What is listed is what was written, too, with sizes.
    page = await world.page(mount_id, f"{name}:/", 1000)
    top = {path: size for path, (_, size) in source.files.items() if b"/" not in path}
    listed = {entry.raw_name: entry.size_bytes for entry in page.entries if entry.type == "file"}
    assert {name: size for name, size in listed.items() if name in top} == top


async def test_the_kernel_gives_every_volume_as_it_was_fsynced(
    sendense_home: Path, short_tmp: Path, stack: Stack
) -> None:
    images = images_of(stack)
    async with restore_world(images) as world:
        mount = await world.mount("it", backend="kernel", disk_ids=PLAIN)
        assert (mount.backend, mount.backend_reason) == ("kernel", "it was asked for")
        assert EMULATED not in mount.notes
        for disk in PLAIN:
            name = f"disk-{disk}-part-1"
            await assert_volume(world, mount.mount_id, name, stack.volumes[name], short_tmp)
        with pytest.raises(OSError, match="Read-only"):
            (Path(mount.mount_path) / "x").touch()
        await world.unmount(mount.mount_id)
        assert left_on_host(world.settings.root) == []
    images.assert_unchanged()


@needs_guestfs
async def test_guestfs_gives_every_volume_as_it_was_fsynced_lvm_luks_raid_and_fat_too(
    sendense_home: Path, short_tmp: Path, stack: Stack
) -> None:
    images = images_of(stack)
    disks = [disk for disk in stack.point.layers if disk != NTFS_BIG or FAT_BIG]
    async with restore_world(images, guestfs_acceleration=ACCELERATION) as world:
        mount = await world.mount("it", passphrases=["wrong", PASSPHRASE], wait_seconds=1, disk_ids=disks)
        assert mount.backend == "guestfs"
        assert "LVM physical volume" in mount.backend_reason
        assert (EMULATED in mount.notes) == (ACCELERATION == "emulate")
        volumes = {volume.name: volume for volume in mount.volumes}
        assert volumes["lv-vg0-root"].guest_path == "/"
        assert volumes["lv-vg0-root"].device == "/dev/vg0/root"
        assert volumes["luks-disk-7"].guest_path == "/secret"
        assert "LVM" in volumes["disk-5"].error
        assert "RAID" in volumes["disk-8"].error
        (array,) = (name for name in volumes if name.startswith("md-"))
        for name, source in stack.volumes.items():
            if name != f"disk-{NTFS_BIG}-part-1" or NTFS_BIG in disks:
                volume = array if name == "md" else name
                await assert_volume(world, mount.mount_id, volume, source, short_tmp)
        late = next(path for path in stack.volumes["luks-disk-7"].files if path.startswith(b"late"))
        entries = await world.page(mount.mount_id, "/secret", 1000)
        assert late in {entry.raw_name for entry in entries.entries}
        with pytest.raises(OSError, match="Read-only"):
            (Path(mount.mount_path) / "x").touch()
        CANARY.write_text(SECRET)
        try:
            await assert_no_way_out(world, mount.mount_id, ["tar", "zip"])
            assert CANARY.read_text() == SECRET
        finally:
            CANARY.unlink()
        await asyncio.to_thread(assert_nowhere, PASSPHRASE.encode(), world.settings.root)
        await world.unmount(mount.mount_id)
        assert left_on_host(world.settings.root) == []
    images.assert_unchanged()


async def test_a_locked_volume_without_its_passphrase_says_so_and_leaves_nothing(
    sendense_home: Path, stack: Stack
) -> None:
    async with restore_world(images_of(stack), guestfs_acceleration=ACCELERATION) as world:
        with pytest.raises(RemoteError) as caught:
            await world.mount("it", disk_ids=[7])
        assert caught.value.reason == "VOLUME_LOCKED"
        assert "disk-7" in caught.value.message
        assert left_on_host(world.settings.root) == []


async def test_an_administrator_can_require_guestfs(sendense_home: Path, stack: Stack) -> None:
    async with restore_world(images_of(stack), backend="guestfs") as world:
        with pytest.raises(RemoteError) as caught:
            await world.mount("it", backend="kernel")
        assert (caught.value.reason, caught.value.metadata["required"]) == ("BACKEND_NOT_ALLOWED", "guestfs")
        assert world.fake_points.leases == {}


@needs_guestfs
async def test_a_mount_is_answered_before_the_micro_vm_is_up_and_can_be_ended_by_force(
    sendense_home: Path, stack: Stack
) -> None:
    async with restore_world(images_of(stack), guestfs_acceleration="emulate", backend="guestfs") as world:
        request = restore_pb2.MountBackupRequest(backup_id=stack.point.backup_id, disk_ids=[1], wait_seconds=1)
        mount = await world.peer.call(world.stub.MountBackup, request, timeout=60)
        assert (mount.state, list(mount.volumes)) == ("mounting", [])
        with pytest.raises(RemoteError) as caught:
            await world.page(mount.mount_id, "/")
        assert caught.value.reason == "MOUNT_NOT_READY"
        await world.unmount(mount.mount_id, force=True)
        assert await world.mounts() == []
        assert left_on_host(world.settings.root) == []
