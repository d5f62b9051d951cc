"""Row 27: whatever is wrong with a guest's file system, a mount fails or answers, the service lives, nothing is left.

How many images are damaged is bounded here; SENDENSE_TEST_FUZZ=500 damages that many of each kind.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from restore_images import MIB, Guest, Images, Point, format_partition, make_full, put, run, whole
from restore_world import World, left_on_host, restore_world

from sendense_restore import mount_table
from sendense_rpc.errors import RemoteError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if "SENDENSE_TEST_FUZZ" in os.environ else 300)]
ROUNDS = int(os.environ.get("SENDENSE_TEST_FUZZ", "4"))
KINDS = {
    "ext4": (["mkfs.ext4", "-q"], 16 * MIB),
    "xfs": (["mkfs.xfs", "-q"], 304 * MIB),
    "btrfs": (["mkfs.btrfs", "-q"], 112 * MIB),
    "ntfs": (["mkntfs", "-q", "-F"], 16 * MIB),
}


@pytest.fixture
async def world(sendense_home: Path) -> AsyncIterator[World]:
    async with restore_world(Images({}, {}), max_mounts=2) as world:
        yield world


def populated(directory: Path, kind: str) -> Guest:
    command, size = KINDS[kind]
    guest = whole(directory / f"{kind}.raw", size)
    format_partition(guest, 0, command)
    with guest.mounted(0, directory / "m") as root:
        for number in range(60):
            put(root, f"d{number % 5}/file{number}", os.urandom(number * 200))
    return guest


def seal(directory: Path, raw: Path, number: int) -> Point:
    folder = directory / f"layers-{number}"
    folder.mkdir()
    return Point(f"backup-f{number}-20251004010203", {0: make_full(raw, folder / "full-20251004-010203.qcow2")})


def damage(raw: Path, chosen: random.Random) -> None:
    """Overwrites pieces of what is not empty, mostly near the start, where superblocks and tables are."""
    with raw.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for _ in range(chosen.choice([1, 3, 20, 200])):
            offset = chosen.randrange(min(size, chosen.choice([8192, MIB, size])))
            file.seek(offset)
            length = chosen.choice([1, 4, 64, 4096])
            file.write(chosen.choice([bytes(length), b"\xff" * length, chosen.randbytes(length)])[: size - offset])


@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_damaged_file_system_fails_or_answers(world: World, tmp_path: Path, kind: str) -> None:
    before = {entry.path for entry in mount_table.read_mounts() if str(entry.path).startswith("/mnt")}
    guest = await asyncio.to_thread(populated, tmp_path, kind)
    for number in range(ROUNDS):
        raw = guest.copy(tmp_path / "damaged.raw")
        damage(raw, random.Random(f"{kind} {number}"))
        world.images.points["it"] = seal(tmp_path, raw, number)
        raw.unlink()
        try:
            mount = await world.mount("it")
        except RemoteError as error:
            if error.reason not in {"NO_FILE_SYSTEM", "MOUNT_FAILED"}:
                raise
        else:
            await look_everywhere(world, mount.mount_id)
            await world.unmount(mount.mount_id, force=True)
        assert await world.mounts() == []
        assert left_on_host(world.settings.root) == []
    assert {entry.path for entry in mount_table.read_mounts() if str(entry.path).startswith("/mnt")} == before


async def look_everywhere(world: World, mount_id: str) -> None:
    """Lists and downloads what is there: each answers or fails with a reason."""
    try:
        for entry in (await world.page(mount_id, "/", 1000)).entries[:20]:
            async with world.get(mount_id, f"/{entry.name}") as response:
                try:
                    await response.read()
                except aiohttp.ClientError:
                    assert response.status == 200  # cut short, and seen as such
    except RemoteError as error:
        if error.reason not in {"FILE_UNREADABLE", "FILE_NOT_FOUND", "NOT_A_DIRECTORY"}:
            raise


async def test_a_file_that_cannot_be_read_says_so_and_hides_no_neighbour(world: World, tmp_path: Path) -> None:
    guest = await asyncio.to_thread(populated, tmp_path, "ext4")
    run("debugfs", "-w", "-R", "sif /d1/file1 block[0] 0", guest.raw)  # an extent header without its magic
    world.images.points["it"] = seal(tmp_path, guest.raw, 0)
    mount = await world.mount("it")
    async with world.get(mount.mount_id, "/d1/file1") as response:
        assert (response.status, (await response.json())["reason"]) == (400, "FILE_UNREADABLE")
    names = await world.entries(mount.mount_id, "/d1")
    assert {"file1", "file6"} <= set(names)
    assert len(await world.download(mount.mount_id, "/d1/file6")) == 1200
    async with world.get(mount.mount_id, "/d1") as response:
        # The archive lacks a file: refused, or cut off before its end.
        if response.status == 200:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    await world.unmount(mount.mount_id)


async def test_a_superblock_cannot_ask_the_host_to_panic(world: World, tmp_path: Path) -> None:
    guest = await asyncio.to_thread(populated, tmp_path, "ext4")
    run("tune2fs", "-e", "panic", guest.raw)
    world.images.points["it"] = seal(tmp_path, guest.raw, 0)
    mount = await world.mount("it")
    table = await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)
    ours = [line for line in table.splitlines() if f"{mount.mount_id}/volumes" in line]
    assert len(ours) == 1
    assert "errors=panic" not in ours[0]
    await world.unmount(mount.mount_id)
