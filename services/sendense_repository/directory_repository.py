"""The adapter of the `Repository` port for directories: `local` and `nfs`, which differ in what they ask of their root.

Each call asks the root's kind first (`Registry.use`): nothing is read or written where the repository's own storage is
not mounted. The work itself is done by the use cases that all directories share.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from sendense_blockio.extents import Extent
from sendense_repository import root as roots
from sendense_repository.clone import can_clone
from sendense_repository.creation import NewLayer
from sendense_repository.deletion import Deletion
from sendense_repository.deletion_plan import DeletionPlan
from sendense_repository.errors import LayerNotFound, LayerNotSealed
from sendense_repository.file_flags import supports_immutable
from sendense_repository.integrity import Damage
from sendense_repository.layer import FixedAreas, JournalPosition
from sendense_repository.layer_check import LayerCheck
from sendense_repository.operations import Operation
from sendense_repository.parentage import ancestry
from sendense_repository.reading_back import Pace, open_read_back
from sendense_repository.records import Holder, LayerRecord, PlacedLayer, RepositoryRecord
from sendense_repository.repository_port import Capabilities, Usage, WritableImage
from sendense_repository.wiring import Parts


class DirectoryRepository:
    """A repository that is a directory."""

    def __init__(self, parts: Parts, record: RepositoryRecord) -> None:
        self._parts = parts
        self._record = record

    @property
    def record(self) -> RepositoryRecord:
        """Its registration, as it was when the adapter was made."""
        return self._record

    async def capabilities(self) -> Capabilities:
        """Tries what the directory's file system can do."""
        root = await self._root()
        return await asyncio.to_thread(
            lambda: Capabilities(local_files=True, clones=can_clone(root), immutable_files=supports_immutable(root))
        )

    async def usage(self) -> Usage:
        """Returns room and content now."""
        root = await self._root()
        room = await asyncio.to_thread(roots.room, root)
        layers = await self._parts.catalogue.layers.sealed(self._record.repository_id)
        reserve = self._parts.registry.reserve_bytes(self._record)
        stored = await asyncio.to_thread(lambda: sum(layer.files(root).sealed_bytes() for layer in layers))
        return Usage(room.total, max(0, room.free - reserve), stored, len(layers))

    async def create_layer(self, holder: Holder, wanted: NewLayer) -> PlacedLayer:
        """Makes a partial layer, see `LayerMaker.create`."""
        return await self._parts.maker.create(holder, replace(wanted, repository=self._record.repository_id))

    async def open_layer(self, holder: Holder, layer_id: str) -> WritableImage:
        """Returns where an unsealed layer is written, see `LayerDesk.open`."""
        placed = await self._parts.layers.open(holder, (await self._own(layer_id)).layer_id)
        root = placed.repository.path
        chain = await self._chain(placed.layer)
        return WritableImage(placed.layer.files(root).partial, [each.files(root).sealed for each in chain[1:]])

    async def set_areas(self, holder: Holder, layer_id: str, areas: Iterable[Extent]) -> FixedAreas:
        """Fixes what is to be copied, see `LayerDesk.set_areas`."""
        return await self._parts.layers.set_areas(holder, layer_id, areas)

    async def remaining_areas(self, layer_id: str) -> list[Extent]:
        """Returns what is still to be copied, see `LayerDesk.remaining`."""
        return await self._parts.layers.remaining(layer_id)

    async def journal_position(self, layer_id: str) -> JournalPosition:
        """Returns how far an unsealed layer's journal is, see `LayerDesk.position`."""
        return await self._parts.layers.position(layer_id)

    async def append_journal(self, holder: Holder, layer_id: str, sequence: int, encoded: bytes) -> JournalPosition:
        """Commits a flushed batch, see `LayerDesk.append`."""
        return await self._parts.layers.append(holder, layer_id, sequence, encoded)

    async def seal_layer(self, holder: Holder, layer_id: str, reason: str) -> PlacedLayer:
        """Seals a layer, see `Sealer.seal`."""
        return await self._parts.sealer.seal(holder, layer_id, reason)

    async def discard_layer(self, holder: Holder, layer_id: str) -> None:
        """Removes a layer that no point holds, see `LayerDesk.discard`."""
        await self._parts.layers.discard(holder, layer_id)

    async def list_layers(self, vm_uuid: str) -> list[LayerRecord]:
        """Returns a VM's layers, oldest first."""
        return await self._parts.catalogue.layers.of_vm(self._record.repository_id, vm_uuid)

    async def find_layer(self, layer_id: str) -> PlacedLayer:
        """Returns one layer.

        Raises:
            LayerNotFound: There is none of that id in this repository.
        """
        await self._own(layer_id)
        return await self._parts.layers.find(layer_id)

    async def plan_deletion(self, backup_ids: Collection[str], *, cascade: bool) -> DeletionPlan:
        """Says what deleting points would do, see `Deleter.plan`."""
        return await self._parts.deleter.plan(backup_ids, cascade=cascade)

    async def delete(self, holder: Holder, backup_ids: Collection[str], *, cascade: bool) -> Deletion:
        """Deletes points, see `Deleter.delete`."""
        return await self._parts.deleter.delete(holder, backup_ids, cascade=cascade)

    async def consolidate(self, holder: Holder, first_backup_id: str, last_backup_id: str) -> Operation:
        """Starts or joins a consolidation, see `Operations.consolidate`."""
        return await self._parts.operations.consolidate(holder, first_backup_id, last_backup_id, wait_seconds=0)

    async def verify(self, layer_id: str) -> list[Damage]:
        """Reads a sealed layer back, see `LayerCheck`.

        Raises:
            LayerNotFound: There is none of that id in this repository.
            LayerNotSealed: It is still being written.
        """
        layer = await self._own(layer_id)
        if layer.state != "sealed":
            raise LayerNotSealed(layer_id)
        chain = await self._chain(layer)
        async with open_read_back() as session:
            check = LayerCheck(session, await self._root(), chain, Pace(0), threading.Event(), lambda _: None)
            return await check.run()

    async def _root(self) -> Path:
        return (await self._parts.registry.use(self._record.repository_id)).path

    async def _own(self, layer_id: str) -> LayerRecord:
        layer = await self._parts.catalogue.layers.find(layer_id)
        if layer is None or layer.repository_id != self._record.repository_id:
            raise LayerNotFound(layer_id)
        return layer

    async def _chain(self, layer: LayerRecord) -> list[LayerRecord]:
        known = {each.layer_id: each for each in await self.list_layers(layer.vm_uuid)}
        return ancestry(layer, known)
