"""What is browsed and downloaded equals what the guest had fsynced, and the layers are never touched."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from restore_images import CANARY, MIB, Images, images_of_session
from restore_world import World, restore_world

from sendense_restore import mount_table
from sendense_rpc.errors import RemoteError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


@pytest.fixture
async def world(sendense_home: Path, images: Images) -> AsyncIterator[World]:
    async with restore_world(images) as world:
        yield world
    images.assert_unchanged()


@pytest.mark.parametrize("point", ["full", "incr", "btrfs", "ntfs", "bare", "windows"])
async def test_every_fsynced_file_is_there_and_every_deleted_one_gone(world: World, point: str) -> None:
    mount = await world.mount(point)
    await world.assert_files(mount.mount_id, point)
    assert mount.state == "mounted"
    assert world.fake_points.callers == {"service:restore"}


async def test_two_disks_become_one_tree_by_the_guests_fstab(world: World) -> None:
    mount = await world.mount("incr")
    volumes = {volume.name: volume for volume in mount.volumes}
    assert volumes["disk-0-part-1"].guest_path == "/"
    assert volumes["disk-0-part-1"].label == "system"
    assert volumes["disk-1-part-1"].guest_path == "/srv/my data"
    assert volumes["disk-1-part-1"].file_system == "xfs"
    assert volumes["disk-1-part-1"].size_bytes == 320 * MIB
    assert "swap" in volumes["disk-0-part-2"].error
    assert mount.operating_system == "Test Linux 1"
    # The link at /linked leads to ../../../tmp: never a place to bind to outside, nor one that exists inside.
    assert not any(entry.path.is_relative_to("/tmp/db") for entry in mount_table.read_mounts())
    local = Path(mount.mount_path)
    assert (local / "srv/my data/db/000.ibd").read_bytes() == world.images.points["incr"].files[
        "/srv/my data/db/000.ibd"
    ]


async def test_a_volume_is_reachable_by_itself(world: World) -> None:
    mount = await world.mount("full")
    names = await world.entries(mount.mount_id, "disk-1-part-1:/db")
    assert "000.ibd" in names
    assert "db" not in await world.entries(mount.mount_id, "disk-0-part-1:/srv/my data")


async def test_mounts_allow_nothing_but_reading(world: World) -> None:
    mount = await world.mount("incr")
    mounts = mount_table.mounts_below(Path(mount.mount_path), world.settings.work_root / mount.mount_id / "volumes")
    assert len(mounts) == 4
    for entry in mounts:
        assert {"ro", "nosuid", "nodev", "noexec"} <= entry.options, entry
    with pytest.raises(OSError, match="Read-only"):
        (Path(mount.mount_path) / "x").touch()


async def test_disks_without_a_root_show_a_directory_each(world: World) -> None:
    mount = await world.mount("bare")
    assert set(await world.entries(mount.mount_id, "/")) == {"disk-2", "disk-5"}
    assert [volume.guest_path for volume in mount.volumes] == ["", ""]


async def test_a_windows_system_shows_its_drives_by_letter(world: World) -> None:
    mount = await world.mount("windows")
    assert set(await world.entries(mount.mount_id, "/")) == {"C:", "E:"}
    assert {v.name: v.guest_path for v in mount.volumes} == {"disk-0-part-1": "/E:", "disk-0-part-2": "/C:"}
    assert mount.operating_system == "Windows Server 2022 Standard"


async def test_btrfs_of_one_uuid_mounts_twice_or_says_why(world: World) -> None:
    first = await world.mount("btrfs")
    # Linux before 6.7 refuses a second clone; what must never happen is that it shows the first one's device.
    apart = world.mount("btrfs", passphrases=["so that it is not shared"])
    (second,) = await asyncio.gather(apart, return_exceptions=True)
    if isinstance(second, BaseException):
        assert getattr(second, "reason", "") == "NO_FILE_SYSTEM", second
    else:
        await world.assert_files(second.mount_id, "btrfs")
    await world.assert_files(first.mount_id, "btrfs")


async def test_many_points_are_mounted_at_once(world: World) -> None:
    mounts = await asyncio.gather(*(world.mount(name) for name in ["full", "incr", "full", "incr", "bare", "ntfs"]))
    assert len({mount.mount_id for mount in mounts}) == 6
    await asyncio.gather(*(world.assert_files(m.mount_id, n) for m, n in zip(mounts, ("full", "incr"), strict=False)))
    await asyncio.gather(*(world.unmount(mount.mount_id) for mount in mounts))
    assert await world.mounts() == []


async def test_listing_has_every_field_and_odd_names_survive_a_round_trip(world: World) -> None:
    mount = await world.mount("full")
    entries = await world.entries(mount.mount_id, "/tricks")
    setuid = entries["setuid"]
    assert (setuid.type, setuid.mode, setuid.uid, setuid.gid, setuid.size_bytes) == ("file", 0o4755, 1234, 5678, 10)
    assert setuid.modified_at.seconds > 1_600_000_000
    assert (entries["up"].type, entries["up"].link_target) == ("symlink", "../../../../../..")
    assert entries["fifo"].type == entries["device"].type == "other"
    odd = "caf\\xe9 \\\\ new\nline"
    assert odd in entries
    assert await world.download(mount.mount_id, f"/tricks/{odd}") == b"odd name\n"


async def test_pages_cover_a_directory_exactly_once_in_order(world: World) -> None:
    mount = await world.mount("incr")
    names: list[str] = []
    token = ""
    while True:
        page = await world.page(mount.mount_id, "/srv/my data/db", 7, token)
        assert len(page.entries) <= 7
        names += [entry.name for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"{n:03}.ibd" for n in range(60)]
    with pytest.raises(RemoteError) as caught:
        await world.page(mount.mount_id, "/srv", token="!!")
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/..", "/etc/../../etc/passwd", "/a/../.."])
async def test_a_path_above_the_root_is_refused(world: World, path: str) -> None:
    mount = await world.mount("bare")
    with pytest.raises(RemoteError) as caught:
        await world.page(mount.mount_id, path)
    assert (caught.value.kind.name, caught.value.reason) == ("INVALID_ARGUMENT", "PATH_OUTSIDE_MOUNT")
    async with world.get(mount.mount_id, path) as response:
        assert response.status == 400
        body = await response.json()
    assert body["reason"] == "PATH_OUTSIDE_MOUNT"
    assert set(body) == {"code", "reason", "message", "help", "details"}


async def test_no_trick_of_a_guest_reads_anything_outside(world: World) -> None:
    mount = await world.mount("full")
    CANARY.write_text("secret of the host")
    try:
        for name in ("absolute", "climbing", f"up{CANARY}", f"proc{CANARY}", "circle"):
            async with world.get(mount.mount_id, f"/tricks/{name}") as response:
                body = await response.read()
                assert response.status in (404, 400), name
                assert b"secret" not in body
        for name in ("fifo", "device", "disk"):
            async with asyncio.timeout(5), world.get(mount.mount_id, f"/tricks/{name}") as response:
                assert (response.status, (await response.json())["reason"]) == (400, "NOT_A_FILE"), name
        assert await world.entries(mount.mount_id, "/tricks/up") == await world.entries(mount.mount_id, "/")
        assert await world.download(mount.mount_id, "/tricks/inside") == b'PRETTY_NAME="Test Linux 1"\n'
        archive = await world.download(mount.mount_id, "/tricks")
        assert b"secret" not in archive
    finally:
        CANARY.unlink()


async def test_a_disk_that_begins_with_a_qcow2_header_gives_nothing_of_the_host(world: World) -> None:
    CANARY.write_text("secret of the host")
    try:
        with pytest.raises(RemoteError) as caught:
            await world.mount("trap")
        assert caught.value.reason == "NO_FILE_SYSTEM"
    finally:
        CANARY.unlink()


async def test_a_directory_downloads_as_a_tar_with_everything(world: World) -> None:
    mount = await world.mount("incr")
    async with world.get(mount.mount_id, "/tricks") as response:
        assert response.headers["Content-Disposition"] == 'attachment; filename="tricks.tar"'
        content = await response.read()
    assert len(content) < 2 * MIB, "the sparse file was not kept sparse"
    archive = tarfile.TarFile(fileobj=io.BytesIO(content), errors="surrogateescape", encoding="utf-8")
    members = {member.name: member for member in archive.getmembers()}
    setuid = members["./setuid"]
    assert (setuid.mode, setuid.uid, setuid.gid) == (0o4755, 1234, 5678)
    assert setuid.pax_headers["SCHILY.xattr.user.note"] == "kept"
    assert members["./fifo"].isfifo()
    assert members["./absolute"].linkname == str(CANARY)
    assert members["./hard"].islnk() or members["./sparse"].islnk()
    assert "./caf\udce9 \\ new\nline" in members
    first = members["./sparse"] if members["./sparse"].isreg() else members["./hard"]
    extracted = archive.extractfile(first)
    assert extracted is not None
    body = extracted.read()
    assert len(body) == 40 * MIB
    assert (body[:5], body[20 * MIB : 20 * MIB + 6]) == (b"begin", b"middle")


async def test_a_tar_of_the_root_crosses_into_bound_volumes(world: World) -> None:
    mount = await world.mount("incr")
    content = await world.download(mount.mount_id, "/srv")
    archive = tarfile.TarFile(fileobj=io.BytesIO(content))
    for path, expected in world.images.points["incr"].files.items():
        if path.startswith("/srv/"):
            file = archive.extractfile("./" + path.removeprefix("/srv/"))
            assert file is not None
            assert hashlib.sha256(file.read()).digest() == hashlib.sha256(expected).digest()
