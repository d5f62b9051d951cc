"""Downloads are HTTP as clients expect it, and a broken one never looks whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from restore_images import MIB, Images, images_of_session
from restore_world import World, eventually, restore_world

from sendense.restore.v1 import restore_pb2

BIG = 5 * MIB + 123


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


@pytest.fixture
async def world(sendense_home: Path, images: Images) -> AsyncIterator[World]:
    async with restore_world(images, drain_seconds=0.3) as world:
        yield world


@pytest.fixture
async def mount(world: World) -> restore_pb2.Mount:
    return await world.mount("full")


async def test_a_file_has_length_name_and_validators(world: World, mount: restore_pb2.Mount) -> None:
    async with world.get(mount.mount_id, "/big.bin") as response:
        assert response.headers["Content-Length"] == str(BIG)
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["Content-Disposition"] == 'attachment; filename="big.bin"'
        etag = response.headers["ETag"]
    async with world.get(mount.mount_id, "/big.bin", method="HEAD") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(BIG))
        assert await response.read() == b""
    async with world.get(mount.mount_id, "/big.bin", **{"If-None-Match": etag}) as response:
        assert (response.status, await response.read()) == (304, b"")
    again = await world.mount("full")
    async with world.get(again.mount_id, "/big.bin") as response:
        assert response.headers["ETag"] == etag, "a resumed download must find the same tag in another mount"
    async with world.get(mount.mount_id, "/empty") as response:
        assert (response.status, response.headers["Content-Length"], await response.read()) == (200, "0", b"")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-4199", 100, 4200),
        ("bytes=-10", BIG - 10, BIG),
        (f"bytes={BIG - 3}-", BIG - 3, BIG),
    ],
)
async def test_ranges_give_exactly_their_bytes(
    world: World, mount: restore_pb2.Mount, asked: str, start: int, stop: int
) -> None:
    whole = world.images.points["full"].files["/big.bin"]
    async with world.get(mount.mount_id, "/big.bin", Range=asked) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{BIG}"
        assert await response.read() == whole[start:stop]


async def test_a_range_behind_the_end_is_416(world: World, mount: restore_pb2.Mount) -> None:
    async with world.get(mount.mount_id, "/big.bin", Range=f"bytes={BIG}-") as response:
        assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{BIG}")


@pytest.mark.parametrize(
    ("role", "status", "reason"), [("viewer", 403, "ROLE_MISSING"), ("operator", 403, "ROLE_MISSING")]
)
async def test_only_the_restore_role_sees_content(
    world: World, mount: restore_pb2.Mount, role: str, status: int, reason: str
) -> None:
    async with world.http.get(
        world.url(mount.mount_id), params={"path": "/big.bin"}, headers=world.headers(role)
    ) as response:
        assert (response.status, (await response.json())["reason"]) == (status, reason)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic YTpi"}])
async def test_without_a_good_token_nothing_is_told(
    world: World, mount: restore_pb2.Mount, headers: dict[str, str]
) -> None:
    async with world.http.get(world.url(mount.mount_id), params={"path": "/big.bin"}, headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (401, "UNAUTHENTICATED")


async def test_errors_name_what_is_wrong(world: World, mount: restore_pb2.Mount) -> None:
    for mount_id, path, status, reason in (
        ("mount-nowhere", "/x", 404, "MOUNT_NOT_FOUND"),
        (mount.mount_id, "/no/such", 404, "FILE_NOT_FOUND"),
        (mount.mount_id, "relative", 400, "INVALID_PATH"),
        (mount.mount_id, "/bad\\escape", 400, "INVALID_PATH"),
        (mount.mount_id, "disk-9:/x", 404, "FILE_NOT_FOUND"),
    ):
        async with world.get(mount_id, path) as response:
            assert (response.status, (await response.json())["reason"]) == (status, reason), path


async def slow_download(world: World, mount_id: str, path: str) -> aiohttp.ClientResponse:
    """A download whose receiver has read the head only; the rest waits in socket buffers and the service."""
    response: aiohttp.ClientResponse = await world.get(mount_id, path)
    assert response.status == 200
    return response


async def test_unmount_waits_for_downloads_or_cuts_them_when_forced(world: World, mount: restore_pb2.Mount) -> None:
    response = await slow_download(world, mount.mount_id, "/big.bin")
    with pytest.raises(Exception, match="running downloads") as caught:
        await world.unmount(mount.mount_id)
    assert caught.value.reason == "MOUNT_BUSY"  # type: ignore[attr-defined]
    assert [m.state for m in await world.mounts()] == ["mounted"]
    await world.unmount(mount.mount_id, force=True)
    with pytest.raises(aiohttp.ClientPayloadError):
        await response.read()
    assert await world.mounts() == []


async def test_curl_fails_when_the_storage_goes_during_a_download(world: World, mount: restore_pb2.Mount) -> None:
    """The storage daemon is killed below a file and below a tar; curl must exit non-zero for both."""
    for path in ("/big.bin", "/"):
        current = await world.mount("full", passphrases=["not shared with the other mount"])
        place = world.settings.work_root / current.mount_id
        token = world.headers()["Authorization"]
        curl = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--show-error", "--limit-rate", "200k",
            "--unix-socket", str(world.settings.http_socket),
            "--header", f"Authorization: {token}", "--get", "--data-urlencode", f"path={path}",
            "--output", str(world.settings.root / "out"), world.url(current.mount_id),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await asyncio.sleep(0.5)
        pid = int(json.loads((place / "daemon.json").read_text())["pid"])
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            _, stderr = await curl.communicate()
        assert curl.returncode in (18, 56), stderr

        async def failed(mount_id: str = current.mount_id) -> bool:
            return (mount_id, "failed") in {(m.mount_id, m.state) for m in await world.mounts()}

        await eventually(failed)
        async with world.get(current.mount_id, "/big.bin") as response:
            assert (response.status, (await response.json())["reason"]) == (400, "MOUNT_NOT_READY")
        await world.unmount(current.mount_id)
