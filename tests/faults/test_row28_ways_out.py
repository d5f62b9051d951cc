"""Row 28: nothing in a guest leads out of its mount, whichever back end mounted it and however it is asked for.

A canary file on the host holds a secret; links of every kind lead to it, and no answer may hold it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from restore_images import CANARY, Images, images_of_session
from restore_world import World, left_on_host, restore_world

from sendense.restore.v1 import restore_pb2
from sendense_restore.guestfs_backend import guestfs_missing
from sendense_rpc.errors import RemoteError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
SECRET = "secret of the host"

WAYS_OUT = [
    "/tricks/absolute",
    "/tricks/climbing",
    f"/tricks/up{CANARY}",
    f"/tricks/proc{CANARY}",
    "/tricks/proc/../.." + str(CANARY),
    "/tricks/circle",
    "/linked" + str(CANARY),
    str(CANARY),
    "/tricks/../tricks/absolute",
    f"disk-0-part-1:/tricks/up{CANARY}",
]
ABOVE = ["/../../etc/passwd", "/..", "/etc/../../etc/passwd", r"/\x2e\x2e/x", "disk-0-part-1:/..", "/a/../../b"]
NOT_FILES = ["/tricks/fifo", "/tricks/device", "/tricks/disk"]
ODD = "caf\\xe9 \\\\ new\nline"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


@pytest.mark.parametrize(
    "backend",
    [
        "kernel",
        pytest.param(
            "guestfs", marks=pytest.mark.skipif(bool(guestfs_missing()), reason=guestfs_missing() or "it is there")
        ),
    ],
)
async def test_nothing_outside_is_read_and_nothing_is_written(
    sendense_home: Path, images: Images, backend: str
) -> None:
    CANARY.write_text(SECRET)
    try:
        async with restore_world(images, guestfs_acceleration="emulate") as world:
            mount = await world.mount("full", backend=backend)
            forms = ["tar", "tar.zst", "zip"] if backend == "kernel" else ["zip"]  # an emulated one is slow
            await assert_no_way_out(world, mount.mount_id, forms)
            root = Path(mount.mount_path)
            with pytest.raises(OSError, match="Read-only"):
                (root / "etc" / "x").touch()
            await world.unmount(mount.mount_id)
            assert left_on_host(world.settings.root) == []
        assert CANARY.read_text() == SECRET
        images.assert_unchanged()
    finally:
        CANARY.unlink()


async def assert_no_way_out(world: World, mount_id: str, forms: list[str]) -> None:
    for path in WAYS_OUT:
        async with world.get(mount_id, path) as response:
            body = await response.read()
            assert response.status in (400, 404), path
            assert SECRET.encode() not in body
        with pytest.raises(RemoteError) as caught:
            await world.page(mount_id, path)
        assert caught.value.reason in ("FILE_NOT_FOUND", "FILE_UNREADABLE", "NOT_A_DIRECTORY"), path
        try:
            request = restore_pb2.GetFileRequest(mount_id=mount_id, path=path)
            entry = await world.peer.call(world.stub.GetFile, request)
        except RemoteError as error:
            if error.reason not in ("FILE_NOT_FOUND", "FILE_UNREADABLE"):
                raise
        else:
            assert entry.type == "symlink", path
    for path in ABOVE:
        with pytest.raises(RemoteError) as caught:
            await world.page(mount_id, path)
        assert caught.value.reason == "PATH_OUTSIDE_MOUNT", path
    for path in NOT_FILES:
        async with world.get(mount_id, path) as response:
            assert (response.status, (await response.json())["reason"]) == (400, "NOT_A_FILE"), path
    assert set(await world.entries(mount_id, "/tricks/up")) == set(await world.entries(mount_id, "/"))
    # An archive holds the links themselves, and each name as it is.
    for form in forms:
        params = {"path": "/tricks", "archive": form}
        async with world.http.get(world.url(mount_id), params=params, headers=world.headers()) as response:
            assert response.status == 200
            assert SECRET.encode() not in await response.read()
    assert await world.download(mount_id, f"/tricks/{ODD}") == b"odd name\n"
    entry = (await world.entries(mount_id, "/tricks"))[ODD]
    assert entry.raw_name == b"caf\xe9 \\ new\nline"


async def test_a_guests_fstab_binds_nothing_outside(sendense_home: Path, images: Images) -> None:
    """/linked leads to ../../../tmp, and the fstab mounts a volume there: no host directory is covered."""
    CANARY.touch()
    try:
        async with restore_world(images) as world:
            mount = await world.mount("full")
            assert CANARY.exists()
            await world.unmount(mount.mount_id)
    finally:
        CANARY.unlink()
