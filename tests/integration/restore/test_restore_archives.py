"""A directory in each form of archive is the whole of it; a form that does not exist is refused."""

from __future__ import annotations

import asyncio
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from restore_images import CANARY, MIB, Images, images_of_session
from restore_world import World, restore_world

from sendense.restore.v1 import restore_pb2


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


@pytest.fixture
async def world(sendense_home: Path, images: Images) -> AsyncIterator[World]:
    async with restore_world(images) as world:
        yield world


async def archive(world: World, mount_id: str, path: str, form: str) -> tuple[bytes, str]:
    params = {"path": path, "archive": form}
    async with world.http.get(world.url(mount_id), params=params, headers=world.headers()) as response:
        assert response.status == 200, await response.text()
        return await response.read(), response.headers["Content-Disposition"]


def expected(images: Images, below: str) -> dict[str, bytes]:
    files = images.points["incr"].files.items()
    return {path.removeprefix(below): content for path, content in files if path.startswith(below)}


async def test_a_zip_holds_every_file_with_mode_owner_and_links(world: World, short_tmp: Path) -> None:
    mount = await world.mount("incr")
    content, disposition = await archive(world, mount.mount_id, "/var", "zip")
    assert disposition == 'attachment; filename="var.zip"'
    packed = zipfile.ZipFile(io.BytesIO(content))
    assert packed.testzip() is None
    files = expected(world.images, "/var/")
    assert {name: packed.read(name) for name in packed.namelist() if not name.endswith("/")} == files
    assert "www/" in packed.namelist()

    content, _ = await archive(world, mount.mount_id, "/tricks", "zip")
    packed = zipfile.ZipFile(io.BytesIO(content))
    members = {info.filename: info for info in packed.infolist()}
    assert stat.S_ISLNK(members["absolute"].external_attr >> 16)
    assert packed.read("absolute") == str(CANARY).encode()
    assert members["setuid"].external_attr >> 16 == stat.S_IFREG | 0o4755
    assert len(packed.read("sparse")) == 40 * MIB
    assert not {"fifo", "device", "disk"} & set(members)
    assert len(content) < MIB
    # Info-ZIP's own reader agrees, where it is installed; Python's is lenient about some fields.
    if unzip := shutil.which("unzip"):
        (short_tmp / "t.zip").write_bytes(content)
        await piped([unzip, "-tqq", str(short_tmp / "t.zip")], b"")


async def piped(command: list[str], content: bytes) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(content)
    assert process.returncode == 0
    return out


async def test_tar_zst_unpacks_to_the_same_tar(world: World) -> None:
    mount = await world.mount("incr")
    content, disposition = await archive(world, mount.mount_id, "/srv", "tar.zst")
    assert disposition == 'attachment; filename="srv.tar.zst"'
    unpacked = await piped(["zstd", "-dcq"], content)
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        for name, data in expected(world.images, "/srv/").items():
            file = tar.extractfile(f"./{name}")
            assert file is not None
            assert file.read() == data


async def test_an_unknown_form_is_refused_with_those_that_exist(world: World) -> None:
    mount = await world.mount("incr")
    params = {"path": "/srv", "archive": "rar"}
    async with world.http.get(world.url(mount.mount_id), params=params, headers=world.headers()) as response:
        body = await response.json()
        assert (response.status, body["reason"]) == (400, "UNKNOWN_ARCHIVE")
        assert "tar, tar.zst, zip" in body["help"]


async def test_search_finds_names_below_a_directory_and_follows_no_link(world: World) -> None:
    mount = await world.mount("incr")

    async def search(pattern: str, path: str = "", limit: int = 0) -> restore_pb2.SearchFilesResponse:
        request = restore_pb2.SearchFilesRequest(mount_id=mount.mount_id, path=path, pattern=pattern, limit=limit)
        return await world.peer.call(world.stub.SearchFiles, request, timeout=60)

    found = await search("PAGE 11?.HTML")
    wanted = {f"/var/www/site{n % 7}/page {n}.html" for n in range(110, 120) if n % 5}
    assert {entry.path for entry in found.entries} == wanted
    assert not found.truncated
    assert {entry.path for entry in (await search("www/site3/*", "/var")).entries} == {
        path for path in world.images.points["incr"].files if path.startswith("/var/www/site3/")
    }
    few = await search(".ibd", limit=7)
    assert (len(few.entries), few.truncated) == (7, True)
    (odd,) = (await search("caf")).entries
    assert odd.raw_name == b"caf\xe9 \\ new\nline"
    assert await world.download(mount.mount_id, odd.path) == b"odd name\n"
    # /tricks/up leads to the root: nothing below it is found a second time.
    assert not [entry.path for entry in (await search("os-release")).entries if "tricks/up" in entry.path]


async def test_one_file_is_described_and_a_link_describes_itself(world: World) -> None:
    mount = await world.mount("incr")

    async def look(path: str) -> restore_pb2.FileEntry:
        return await world.peer.call(world.stub.GetFile, restore_pb2.GetFileRequest(mount_id=mount.mount_id, path=path))

    sparse = await look("/tricks/sparse")
    assert (sparse.type, sparse.size_bytes, sparse.links, sparse.path) == ("file", 40 * MIB, 2, "/tricks/sparse")
    assert sparse.allocated_bytes < MIB
    assert sparse.changed_at.seconds > 1_600_000_000
    link = await look("/tricks/absolute")
    assert (link.type, link.link_target) == ("symlink", str(CANARY))
    root = await look("/")
    assert (root.type, root.path) == ("directory", "/")
