"""How soon a mounted restore point shows its first listing, and a download's rate against reading the mount itself.

The guest's disk is crash-consistent (copied while mounted, its journal dirty). The guestfs back end is emulated where
KVM does not work, which the row's name says. A download goes over the service's Unix socket to curl.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import GIB, Goal, Row, run_script

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "integration" / "restore")]  # the tests' own helpers

from restore_images import MIB, Images, Point, format_partition, make_full, make_increment, put, whole  # noqa: E402
from restore_world import World, restore_world  # noqa: E402

from sendense_access.keys import SigningKey, write_workload_identities  # noqa: E402
from sendense_restore.guestfs_backend import EMULATED, guestfs_missing  # noqa: E402

SAMPLES = 7
DEPTH = 31
DOWNLOADS = 2
MOUNT = Goal(1.0, 0.2, "lower")
KVM = Goal(5.0, None, "lower")


def rows() -> list[Row]:
    """Measures and returns all figures."""
    folder = Path(tempfile.mkdtemp(prefix="bench-restore-", dir="/tmp"))  # a short path for sockets
    images = Path(tempfile.mkdtemp(prefix="bench-restore-", dir="/var/tmp"))
    os.environ["SENDENSE_HOME"] = str(folder)
    write_workload_identities(SigningKey.load_or_create(folder / "keys"), folder / "keys")
    try:
        points = {"shallow": _shallow(images, 1), "deep": _shallow(images, DEPTH), "big": _big(images)}
        return asyncio.run(_measure(Images(points, {})))
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(images)


def _shallow(directory: Path, depth: int) -> Point:
    """A file system of 200 files on a chain of so many layers."""
    folder = directory / f"depth-{depth}"
    folder.mkdir()
    guest = whole(folder / "disk.raw", 24 * MIB)
    format_partition(guest, 0, ["mkfs.ext4", "-q"])
    before = None
    with guest.mounted(0, folder / "m") as root:
        for number in range(200):
            put(root, f"d{number % 10}/f{number}", os.urandom(3000))
        for layer in range(depth):
            put(root, f"layer{layer}", os.urandom(20_000))
            raw = guest.copy(folder / f"{layer}.raw")
            path = folder / f"{layer:02}.qcow2"
            if before is None:
                make_full(raw, path)
            else:
                make_increment(before, raw, folder / f"{layer - 1:02}.qcow2", path)
                before.unlink()
            before = raw
    return Point(f"backup-depth{depth}-20251004010203", {0: path})


def _big(directory: Path) -> Point:
    """A file system with one file of 1 GiB that does not compress."""
    folder = directory / "big"
    folder.mkdir()
    guest = whole(folder / "disk.raw", 1200 * MIB)
    format_partition(guest, 0, ["mkfs.ext4", "-q"])
    with guest.mounted(0, folder / "m") as root:
        put(root, "big.bin", os.urandom(GIB))
        raw = guest.copy(folder / "copy.raw")
    layer = make_full(raw, folder / "full.qcow2")
    guest.raw.unlink()
    raw.unlink()
    return Point("backup-big-20251004010203", {0: layer})


async def _measure(images: Images) -> list[Row]:
    measured: list[Row] = []
    async with restore_world(images) as world:
        for name in ("shallow", "deep"):
            depth = 1 if name == "shallow" else DEPTH
            taken = [await _first_listing(world, name, "kernel") for _ in range(SAMPLES + 1)][1:]
            measured.append(Row.of(f"mount to first listing, kernel, {depth} layers", taken, unit="s", goal=MOUNT))
        if not guestfs_missing():
            mount = await world.mount("shallow", backend="guestfs")  # builds the appliance, and finds out about KVM
            emulated = EMULATED in mount.notes
            await world.unmount(mount.mount_id)
            taken = [await _first_listing(world, "shallow", "guestfs")]
            name = f"mount to first listing, guestfs, {'emulated' if emulated else 'KVM'}"
            measured.append(Row.of(name, taken, unit="s", goal=None if emulated else KVM))
        measured += await _downloads(world)
    return measured


async def _first_listing(world: World, name: str, backend: str) -> float:
    began = time.monotonic()
    mount = await world.mount(name, backend=backend)
    page = await world.page(mount.mount_id, "/")
    seconds = time.monotonic() - began
    assert page.entries
    await world.unmount(mount.mount_id)
    return seconds


async def _downloads(world: World) -> list[Row]:
    cold: list[float] = []
    warm: list[float] = []
    rates: list[float] = []
    for _ in range(DOWNLOADS):
        # Each in a mount of its own, so that neither finds what the other has read.
        read, got = await world.mount("big", passphrases=["apart"]), await world.mount("big", passphrases=["apart"])
        direct, sent = await _read(read.mount_path), await _download(world, got.mount_id)
        cold.append(direct / sent)
        direct, sent = await _read(got.mount_path), await _download(world, got.mount_id)
        warm.append(direct / sent)
        rates.append(1 / sent)
        await world.unmount(read.mount_id)
        await world.unmount(got.mount_id)
    against = "cat of the mount path"
    return [
        Row.of("1 GiB download, first read, ratio", cold, against=against),
        Row.of("1 GiB download, cached, ratio", warm, against=against),
        Row.of("1 GiB download, cached", rates, unit="GiB/s"),
    ]


async def _read(mount_path: str) -> float:
    command = ["dd", f"if={mount_path}/big.bin", "of=/dev/null", "bs=1M", "status=none"]
    return await _timed(command)


async def _download(world: World, mount_id: str) -> float:
    token = world.headers()["Authorization"]
    command = ["curl", "--silent", "--fail", "--unix-socket", str(world.settings.http_socket)]
    command += ["--header", f"Authorization: {token}", "--output", "/dev/null"]
    return await _timed([*command, f"{world.url(mount_id)}?path=/big.bin"])


async def _timed(command: list[str]) -> float:
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode or 1, command[0])
    return time.monotonic() - began


if __name__ == "__main__":
    run_script(__doc__, rows)
