"""A repository service without its socket: real qemu writes layers, the test keeps what they must read as."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from blake3 import blake3

from sendense_blockio.extents import Extent, merge, split
from sendense_blockio.journal import Entry, encode_entries
from sendense_db.engine import Database
from sendense_repository import durable
from sendense_repository.creation import NewLayer
from sendense_repository.point import NewPoint, PlacedPoint
from sendense_repository.records import Holder, PlacedLayer
from sendense_repository.store import metadata
from sendense_repository.wiring import Parts, build_parts

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB
SIZE = 4 * MIB + 512 * 3
"""Not a multiple of the cluster: the last one is cut."""
VM = "564d8a2c-1111-2222-3333-0123456789ab"
CONTEXT = "ctx-web-20261123-120000"


class Killed(Exception):
    """Stands for SIGKILL at a step: nothing after it runs."""


def noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def qemu(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def write_image(image: Path, disk: bytes, data: Iterable[Extent], zeroes: Iterable[Extent], scratch: Path) -> None:
    """Writes a disk's ranges into an image with qemu's own writer."""
    commands: list[str] = []
    for number, extent in enumerate(merge(data)):
        source = scratch / f"piece-{number}"
        source.write_bytes(disk[extent.offset : extent.end])
        commands += ["-c", f"write -q -s {source} {extent.offset} {extent.length}"]
    for extent in zeroes:
        commands += ["-c", f"write -q -z {extent.offset} {extent.length}"]
    if commands:
        qemu("qemu-io", "-f", "qcow2", *commands, "-c", "flush", image)


@contextmanager
def opened_by_qemu(image: Path, socket: Path, *options: str) -> Iterator[None]:
    """Has a qemu process hold the image open for the time of the block."""
    holder = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", *options, "-k", str(socket), str(image)])
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        holder.terminate()
        holder.wait()


def content(image: Path, scratch: Path) -> bytes:
    """What any QEMU tool restores from a layer: no code of Sendense takes part."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        target = Path(folder) / "restored.raw"
        qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, target)
        return target.read_bytes()


def entries_of(disk: bytes, areas: Iterable[Extent]) -> list[Entry]:
    """The journal of a copy in chunks of a cluster."""
    entries = []
    for piece in split(areas, CLUSTER):
        chunk = disk[piece.offset : piece.end]
        entries.append(Entry(piece.offset, piece.length, blake3(chunk).digest() if any(chunk) else None))
    return entries


def tree(root: Path) -> dict[str, str]:
    """Every file below a root with the digest of its bytes."""
    return {
        str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


class Rig:
    """The service's parts over a fresh catalogue and root; `restart` stands for a new process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "backups"
        self.scratch = home / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.database = Database(f"sqlite+aiosqlite:///{home / 'db.sqlite'}")
        # A socket's path must be short, a test's own folder need not be. A new process finds what a killed one left.
        self.work_dir = Path(tempfile.gettempdir()) / f"rig-{blake3(bytes(home)).hexdigest(8)}"
        self.parts: Parts = build_parts(self.database, 0, self.work_dir)
        self.kill_at = ""
        self.at_step: Callable[[str], None] = lambda step: None

    async def start(self, sync: Callable[[Path], None] = durable.sync_file, reserve: int = 0) -> None:
        self.parts = build_parts(self.database, reserve, self.work_dir, sync=sync, observe=self._observe)
        await self.parts.start(self.root)

    async def restart(self, sync: Callable[[Path], None] = durable.sync_file) -> None:
        self.parts.journals.close_all()
        self.kill_at = ""
        await self.start(sync)

    def _observe(self, step: str) -> None:
        self.at_step(step)
        if step == self.kill_at:
            raise Killed(step)

    async def layer(
        self,
        job: str,
        *,
        disk: str = "disk-a",
        parent: str = "",
        attempt: int = 1,
        size: int = SIZE,
        estimated: int = 0,
    ) -> PlacedLayer:
        wanted = NewLayer("local", VM, disk, size, parent, f"change of {job}", estimated)
        return await self.parts.maker.create(Holder(job, attempt), wanted)

    async def written(
        self,
        job: str,
        disk: bytes,
        areas: Sequence[Extent] | None = None,
        *,
        name: str = "disk-a",
        parent: str = "",
        attempt: int = 1,
    ) -> PlacedLayer:
        """A layer with areas, image and journal done; not sealed."""
        areas = [Extent(0, len(disk))] if areas is None else areas
        placed = await self.layer(job, disk=name, parent=parent, attempt=attempt)
        layer_id = placed.layer.layer_id
        await self.parts.layers.set_areas(Holder(job, attempt), layer_id, areas)
        entries = entries_of(disk, areas)
        image = placed.layer.files(self.root).image
        data = [Extent(each.offset, each.length) for each in entries if not each.is_zero]
        zeroes = [Extent(each.offset, each.length) for each in entries if each.is_zero and parent]
        await asyncio.to_thread(write_image, image, disk, data, zeroes, self.scratch)
        half = len(entries) // 2
        for sequence, batch in enumerate((part for part in (entries[:half], entries[half:]) if part), start=1):
            await self.parts.layers.append(Holder(job, attempt), layer_id, sequence, encode_entries(batch))
        return placed

    async def sealed(self, job: str, disk: bytes, areas: Sequence[Extent] | None = None, **more: str) -> PlacedLayer:
        placed = await self.written(job, disk, areas, name=more.get("name", "disk-a"), parent=more.get("parent", ""))
        return await self.parts.sealer.seal(Holder(job, 1), placed.layer.layer_id, "first backup")

    async def commit(self, job: str, *layers: PlacedLayer, attempt: int = 1) -> PlacedPoint:
        ids = [placed.layer.layer_id for placed in layers]
        moment = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
        wanted = NewPoint("local", VM, "web", CONTEXT, ids, moment, '{"cpus": 2}')
        return await self.parts.points.commit(Holder(job, attempt), wanted)

    async def backup(
        self, job: str, disk: bytes, areas: Sequence[Extent] | None = None, parent: str = ""
    ) -> PlacedLayer:
        """A whole backup of one disk."""
        layer = await self.sealed(job, disk, areas, parent=parent)
        await self.commit(job, layer)
        return layer

    def image(self, placed: PlacedLayer) -> Path:
        return placed.layer.files(self.root).image

    def content(self, placed: PlacedLayer) -> bytes:
        return content(self.image(placed), self.scratch)

    async def chain_of(self, length: int) -> tuple[list[PlacedLayer], list[bytes]]:
        """A full and increments, each with data over data, zeroes over data, and data over nothing."""
        disk = bytearray(noise(2 * MIB, 1) + bytes(SIZE - 2 * MIB))
        layers = [await self.backup("job-0", bytes(disk))]
        disks = [bytes(disk)]
        for number in range(1, length):
            areas = [
                Extent(number * CLUSTER, CLUSTER),
                Extent((number + 8) * CLUSTER, 2 * CLUSTER),
                Extent(3 * MIB + number * CLUSTER, CLUSTER),
            ]
            disk[areas[0].offset : areas[0].end] = noise(areas[0].length, number + 10)
            disk[areas[1].offset : areas[1].end] = bytes(areas[1].length)
            disk[areas[2].offset : areas[2].end] = noise(areas[2].length, number + 20)
            layers.append(await self.backup(f"job-{number}", bytes(disk), areas, layers[-1].layer.layer_id))
            disks.append(bytes(disk))
        return layers, disks


@asynccontextmanager
async def open_rig(home: Path) -> AsyncIterator[Rig]:
    """A started rig; closes what it opened."""
    rig = Rig(home)
    async with rig.database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await rig.start()
    try:
        yield rig
    finally:
        await rig.parts.operations.stop()
        rig.parts.journals.close_all()
        await rig.database.close()
        shutil.rmtree(rig.work_dir)
