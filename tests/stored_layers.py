"""Where a rehearsal keeps its layers: arrays in memory, or QCOW2 files as they are stored for good.

`QemuLayers` is the repository service behind its gRPC edge and the copy engine, which fills each layer through one
qemu-storage-daemon, opened and closed as `nbdd` does it. What is compared with a snapshot is what plain `qemu-img`
reads from the sealed image, following the backing files that its header names.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sendense_backup.clients.agents import Pages
from sendense_backup.clients.repository import Areas, NewLayer, NewPoint, RepositoryClient
from sendense_backup.model import FULL, INCREMENTAL, Holder, JobDisk, Layer, Point, Repository
from sendense_blockio.engine import Batch, CopyOptions, Endpoint, copy
from sendense_blockio.entries import encode_entries
from sendense_blockio.extents import Extent
from sendense_db.engine import Database
from sendense_exports.admission import Admitted
from sendense_exports.exportconf import ExportSpec
from sendense_exports.opening import close_exports, open_export
from sendense_qemu import img
from sendense_qemu.header import check_chain
from sendense_qemu.nodes import file_access
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_repository.config import RepositorySettings
from sendense_repository.main import build as open_repository
from sendense_repository.store import metadata
from sendense_rpc.channel import unix_peer
from support import serving

CLUSTER = 64 * 1024


class Layers(Protocol):
    """What a rehearsal needs of its layers.

    Attributes:
        repository: The backup service's port.
        place: The repository that jobs are told.
    """

    repository: Any
    place: Repository

    async def fill(self, row: JobDisk, holder: Holder, snapshot: Path) -> None:
        """Writes exactly the planned areas of a snapshot's disk (a raw file) into the disk's unsealed layer."""

    async def difference(self, row: JobDisk, snapshot: Path) -> str:
        """Returns how a sealed layer, read through its chain, differs from the snapshot's disk; empty when it is it."""


@dataclass
class Stored:
    """A layer: its description, and the disk as it is read through the chain."""

    layer: Layer
    content: bytearray
    areas: list[tuple[int, int]] = field(default_factory=list)
    sealed: bool = False


class MemoryRepository:
    """The repository's port: layers and points in memory."""

    def __init__(self, place: Repository) -> None:
        self.stored: dict[str, Stored] = {}
        self.points: list[Point] = []
        self._place = place
        self._disks: dict[tuple[str, str], int] = {}

    async def repository(self, name: str) -> Repository:
        del name
        return self._place

    async def latest_point(self, repository_id: str, vm_uuid: str) -> Point | None:
        del repository_id
        return next((each for each in reversed(self.points) if each.vm_uuid == vm_uuid), None)

    async def point(self, backup_id: str) -> Point | None:
        return next((each for each in self.points if each.backup_id == backup_id), None)

    async def create_layer(self, new: NewLayer, holder: Holder) -> Layer:
        for each in self.stored.values():
            if not each.sealed and (each.layer.backup_id, each.layer.disk_identity) == (
                holder.job_id,
                new.disk_identity,
            ):
                return each.layer
        content = bytearray(new.virtual_size_bytes)
        if new.parent_layer_id:
            parent = self.stored[new.parent_layer_id]
            assert parent.sealed
            assert parent.layer.disk_identity == new.disk_identity
            assert len(parent.content) == len(content)
            content[:] = parent.content
        number = self._disks.setdefault((new.vm_uuid, new.disk_identity), len(self._disks))
        layer = Layer(
            layer_id=str(uuid.uuid4()),
            disk_id=number,
            disk_identity=new.disk_identity,
            backup_type=INCREMENTAL if new.parent_layer_id else FULL,
            backup_id=holder.job_id,
            chain_id=f"chain-{number}",
            parent_layer_id=new.parent_layer_id,
            path=f"/backups/{number}",
            virtual_size_bytes=new.virtual_size_bytes,
            stored_bytes=0,
            change_id=new.change_id,
            cluster_size_bytes=CLUSTER,
        )
        self.stored[layer.layer_id] = Stored(layer, content)
        return layer

    async def set_areas(self, layer_id: str, holder: Holder, pages: Pages) -> Areas:
        del holder
        stored = self.stored[layer_id]
        assert not stored.areas
        areas = [area async for page in pages for area in page]
        stored.areas = areas
        return Areas(len(areas), sum(length for _, length in areas), "digest")

    async def seal_layer(self, layer_id: str, holder: Holder, reason: str) -> Layer:
        del holder, reason
        self.stored[layer_id].sealed = True
        return self.stored[layer_id].layer

    async def discard_layer(self, layer_id: str, holder: Holder) -> None:
        del holder
        self.stored.pop(layer_id, None)

    async def commit_point(self, new: NewPoint, holder: Holder) -> Point:
        layers = tuple(self.stored[each].layer for each in new.layer_ids)
        point = Point(holder.job_id, new.repository_id, new.vm_uuid, layers, new.hardware_json)
        self.points.append(point)
        needed = {layer.layer_id for each in self.points[-2:] for layer in each.layers}
        self.stored = {name: each for name, each in self.stored.items() if name in needed}
        return point


class MemoryLayers:
    """Layers as arrays: for tests of what is decided, where the bytes only have to show that it was right."""

    def __init__(self) -> None:
        self.place = Repository("repo-1", "local", "local", "/backups", enabled=True, available_size_bytes=1 << 50)
        self.repository = MemoryRepository(self.place)

    async def fill(self, row: JobDisk, holder: Holder, snapshot: Path) -> None:
        del holder
        content = await asyncio.to_thread(snapshot.read_bytes)
        stored = self.repository.stored[row.layer_id]
        for offset, length in stored.areas:
            stored.content[offset : offset + length] = content[offset : offset + length]

    async def difference(self, row: JobDisk, snapshot: Path) -> str:
        wanted = await asyncio.to_thread(snapshot.read_bytes)
        found = self.repository.stored[row.layer_id].content
        if found == wanted:
            return ""
        blocks = [n for n in range(0, len(wanted), CLUSTER) if found[n : n + CLUSTER] != wanted[n : n + CLUSTER]]
        return f"blocks at {blocks} are not the snapshot's"


class QemuLayers:
    """Layers as they are stored.

    Args:
        repository: The repository service.
        place: Its default repository.
        daemon: What images are served by.
        socket: Where it listens.
    """

    def __init__(self, repository: RepositoryClient, place: Repository, daemon: StorageDaemon, socket: Path) -> None:
        self.repository = repository
        self.place = place
        self._daemon = daemon
        self._socket = socket
        self._numbers = itertools.count()

    async def fill(self, row: JobDisk, holder: Holder, snapshot: Path) -> None:
        pages = self.repository.remaining_areas(row.layer_id)
        areas = [Extent(offset, length) async for page in pages for offset, length in page]
        if not areas:
            return
        number = next(self._numbers)
        source, target = f"e{number}-from", f"e{number}-to"
        image = Path(row.path)
        chain = [header.path for header in await asyncio.to_thread(check_chain, image, [image.parent])]
        await self._open(source, [snapshot], read_only=True)
        await self._open(target, chain, read_only=False)
        batches = await asyncio.to_thread(self._copy, source, target, areas, fresh=row.backup_type == FULL)
        assert await close_exports(self._daemon, {source: False, target: False}) == {}
        for batch in batches:
            entries = encode_entries(batch.entries)
            await self.repository.append_journal(row.layer_id, holder, batch.sequence, entries)

    async def difference(self, row: JobDisk, snapshot: Path) -> str:
        compared = await img.compare(Path(row.path), "qcow2", snapshot, "raw")
        return "" if compared.identical else compared.detail

    async def _open(self, name: str, chain: Sequence[Path], *, read_only: bool) -> None:
        """Serves an image under a name, which is also the export's id."""
        access = await asyncio.to_thread(file_access, chain[0], self._daemon.aio)
        spec = ExportSpec(
            name=name,
            path=chain[0],
            format="raw" if read_only else "qcow2",
            read_only=read_only,
            trim=False,
            size_bytes=None,
            file=chain[0],
            line=0,
        )
        await open_export(self._daemon, spec, Admitted(name, tuple(chain), chain[0].stat().st_size), access)

    def _copy(self, source: str, target: str, areas: Sequence[Extent], *, fresh: bool) -> list[Batch]:
        batches: list[Batch] = []
        copy(
            Endpoint.unix(self._socket, source, read_only=True),
            Endpoint.unix(self._socket, target),
            areas,
            CopyOptions(zeroes="skip" if fresh else "write"),
            batches.append,
        )
        return batches


@asynccontextmanager
async def qemu_layers(root: Path) -> AsyncIterator[QemuLayers]:
    """Runs the repository service, in this process, in a state directory with keys, to which `SENDENSE_HOME` points.

    Args:
        root: Of the repository.
    """
    settings = RepositorySettings(default_root=root, reserve_bytes=0)
    database = Database(settings.catalogue_url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(await stack.enter_async_context(open_repository(settings)), settings))
        peer = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
        stack.push_async_callback(peer.close)
        client = RepositoryClient(peer)
        daemon = await StorageDaemon.start(
            settings.run_dir / "qmp.sock", log_path=settings.run_dir / "qsd.log", die_with_parent=True
        )
        stack.push_async_callback(daemon.stop)
        socket = settings.run_dir / "nbd.sock"
        await daemon.serve_nbd(socket)
        yield QemuLayers(client, await client.repository("local"), daemon, socket)
