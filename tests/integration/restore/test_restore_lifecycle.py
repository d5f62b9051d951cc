"""Mounts end when they should, and never leave anything on the host: in order, idle, busy, failed or killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from restore_images import Images, images_of_session, run
from restore_world import (
    World,
    create_tables,
    eventually,
    left_on_host,
    neighbours,
    processes,
    restore_world,
    rows,
    said,
)

from sendense.restore.v1 import restore_pb2
from sendense_restore.config import RestoreSettings
from sendense_rpc.errors import RemoteError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


@pytest.fixture
async def world(sendense_home: Path, images: Images) -> AsyncIterator[World]:
    async with restore_world(images, max_mounts=2) as world:
        yield world
    images.assert_unchanged()


async def no_mounts(world: World) -> bool:
    return await world.mounts() == []


def reason(error: pytest.ExceptionInfo[RemoteError]) -> str:
    return error.value.reason


async def test_the_same_request_id_gives_the_same_mount(world: World) -> None:
    first, second = await asyncio.gather(world.mount("incr", "r1"), world.mount("incr", "r1"))
    assert first.mount_id == second.mount_id
    with pytest.raises(RemoteError) as caught:
        await world.mount("bare", "r1")
    assert reason(caught) == "REQUEST_ID_REUSED"
    await world.unmount(first.mount_id)
    assert (await world.mount("incr", "r1")).mount_id != first.mount_id


async def test_a_mount_over_the_limit_is_refused(world: World) -> None:
    await asyncio.gather(world.mount("bare"), world.mount("incr"))
    with pytest.raises(RemoteError) as caught:
        await world.mount("full")
    assert (caught.value.kind.name, reason(caught)) == ("RESOURCE_EXHAUSTED", "TOO_MANY_MOUNTS")


async def test_what_cannot_be_mounted_says_why_and_leaves_nothing(world: World) -> None:
    with pytest.raises(RemoteError) as caught:
        await world.mount("empty")
    assert reason(caught) == "NO_FILE_SYSTEM"
    world.images.points["empty"].status = "failed"
    try:
        with pytest.raises(RemoteError) as caught:
            await world.mount("empty")
        assert reason(caught) == "BACKUP_NOT_COMPLETED"
    finally:
        world.images.points["empty"].status = "completed"
    for asked, expected in (("backup-none", "BACKUP_NOT_FOUND"), ("backup-", "AMBIGUOUS_BACKUP_ID")):
        with pytest.raises(RemoteError) as caught:
            await world.peer.call(world.stub.MountBackup, restore_pb2.MountBackupRequest(backup_id=asked))
        assert reason(caught) == expected
    assert left_on_host(world.settings.root) == []
    assert world.fake_points.leases == {}


async def test_a_layer_that_names_a_file_of_the_host_is_refused(world: World, short_tmp: Path) -> None:
    layer = short_tmp / "bad.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "/etc/passwd", str(layer), "8M"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    good = dict(world.images.points["empty"].layers)
    world.images.points["empty"].layers = {0: layer}
    try:
        with pytest.raises(RemoteError) as caught:
            await world.mount("empty")
    finally:
        world.images.points["empty"].layers = good
    assert reason(caught) == "MOUNT_FAILED"
    assert "/etc/passwd" in caught.value.message


async def test_only_the_read_only_mode_exists(world: World) -> None:
    request = restore_pb2.MountBackupRequest(backup_id="backup-bare", mode="read-write")
    with pytest.raises(RemoteError) as caught:
        await world.peer.call(world.stub.MountBackup, request)
    assert (caught.value.kind.name, reason(caught)) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert await world.mounts() == []


async def test_below_a_shared_mount_no_volume_appears_twice(sendense_home: Path, images: Images) -> None:
    """systemd makes `/` shared: what is bound into the guest's tree must not show up in the volume by itself."""
    run("mount", "--bind", sendense_home, sendense_home)
    run("mount", "--make-shared", sendense_home)
    try:
        async with restore_world(images) as world:
            mount = await world.mount("incr")
            await world.assert_files(mount.mount_id, "incr")
            assert await world.entries(mount.mount_id, "disk-0-part-1:/srv/my data") == {}
            await world.unmount(mount.mount_id)
            assert await rows(world.settings) == []
    finally:
        run("umount", sendense_home)


async def test_a_full_temporary_directory_is_refused_before_anything_is_made(
    sendense_home: Path, images: Images
) -> None:
    work = sendense_home / "restore"
    work.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", work)
    try:
        async with restore_world(images) as world:
            with pytest.raises(RemoteError) as caught:
                await world.mount("incr")
            assert (caught.value.reason, int(caught.value.metadata["free_bytes"]) < 64 << 20) == ("NO_ROOM", True)
            assert await world.mounts() == []
            assert world.fake_points.leases == {}
            assert [path.name for path in work.iterdir()] == ["exports"]
    finally:
        run("umount", work)


async def test_a_prefix_of_the_backup_id_is_enough(world: World) -> None:
    mount = await world.peer.call(world.stub.MountBackup, restore_pb2.MountBackupRequest(backup_id="backup-btr"))
    assert mount.backup_id == "backup-btrfs-20251004010203"


async def test_a_person_inside_the_mount_is_named_before_it_is_taken_away(world: World) -> None:
    mount = await world.mount("incr")
    inside = Path(mount.mount_path) / "srv" / "my data"
    sleeper = await asyncio.create_subprocess_exec("sleep", "60", cwd=inside)
    try:
        with pytest.raises(RemoteError) as caught:
            await world.unmount(mount.mount_id)
        assert reason(caught) == "MOUNT_BUSY"
        assert f"sleep (pid {sleeper.pid})" in caught.value.message
        await world.assert_files(mount.mount_id, "incr")
        await world.unmount(mount.mount_id, force=True)
        assert await world.mounts() == []
    finally:
        sleeper.kill()
        await sleeper.wait()

    async def clean() -> bool:
        return left_on_host(world.settings.root) == []

    await eventually(clean)


async def test_an_idle_mount_ends_and_use_resets_the_time(sendense_home: Path, images: Images) -> None:
    async with restore_world(images, idle_seconds=1.0) as world:
        mount = await world.mount("bare")
        for _ in range(4):
            await asyncio.sleep(0.5)
            await world.page(mount.mount_id, "/")
        await eventually(lambda: no_mounts(world))
        assert left_on_host(world.settings.root) == []
        with pytest.raises(RemoteError) as caught:
            await world.page(mount.mount_id, "/")
        assert reason(caught) == "MOUNT_NOT_FOUND"


async def test_a_mount_reaches_no_more_than_its_greatest_age(sendense_home: Path, images: Images) -> None:
    async with restore_world(images, max_age_seconds=1.0, drain_seconds=0.1) as world:
        await world.mount("bare")
        await eventually(lambda: no_mounts(world))


async def test_sigterm_undoes_everything(sendense_home: Path, images: Images) -> None:
    settings = RestoreSettings()
    await create_tables(settings)
    async with World(settings, images) as world, neighbours(world), processes(settings) as service:
        process = await service.start()
        await asyncio.gather(*(world.mount(name) for name in ("incr", "full", "bare", "ntfs")))
        process.send_signal(signal.SIGTERM)
        await said(process, "undoing mounts")
        process.send_signal(signal.SIGTERM)  # Ctrl-C asks twice: the terminal, then the process manager
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert left_on_host(settings.root) == []
        assert world.fake_points.leases == {}
        assert await rows(settings) == []


async def test_a_second_service_on_the_same_state_is_refused(world: World) -> None:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "sendense-restore",
        env={**os.environ, "SENDENSE_HOME": str(world.settings.root)},
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode != 0
    assert b"in use by another restore service" in stderr
