"""The port behind which backups are kept: what every kind of repository does, whatever its storage is.

What always holds, for every adapter (`tests/integration/repository/test_repository_contract.py`): mutations are made by
the job that owns a layer and never by an older attempt; a layer that is not sealed belongs to no point and disappears
when it is discarded; a sealed layer's bytes never change; deleting or consolidating changes no other point's content;
what is not the repository's own storage is refused before anything is read or written.

Sealed layers are immutable and named once, so an object store can keep them as objects: it would hand out a local file
in `open_layer`, upload on `seal_layer` with conditional creates, and consolidate by reading ranges. Nothing here says
that storage is a directory; only `open_layer` gives a path, on the machine that the writer's export runs on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sendense_blockio.extents import Extent
from sendense_repository.creation import NewLayer
from sendense_repository.deletion import Deletion
from sendense_repository.deletion_plan import DeletionPlan
from sendense_repository.integrity import Damage
from sendense_repository.layer import FixedAreas, JournalPosition
from sendense_repository.operations import Operation
from sendense_repository.records import Holder, LayerRecord, PlacedLayer, RepositoryRecord


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a repository's storage can do.

    Attributes:
        local_files: Layers are files of this machine, which qemu opens by their path.
        clones: Copies share their blocks, so that a merge costs only what it changes.
        immutable_files: Files can be protected from everybody for a time.
    """

    local_files: bool
    clones: bool
    immutable_files: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Room and content of a repository, in bytes.

    Attributes:
        total_bytes: Size of its storage.
        available_bytes: What new backups may use.
        stored_bytes: What its sealed layers take.
        layers: How many sealed layers there are.
    """

    total_bytes: int
    available_bytes: int
    stored_bytes: int
    layers: int


@dataclass(frozen=True, slots=True)
class WritableImage:
    """Where a layer's bytes go until it is sealed.

    Attributes:
        path: A qcow2 image on this machine.
        chain: The layers below it, down to the full: read-only.
    """

    path: Path
    chain: Sequence[Path]


class Repository(Protocol):
    """One repository. Errors are those of `sendense_repository.errors`, by name in each use case."""

    @property
    def record(self) -> RepositoryRecord:
        """Its registration."""

    async def capabilities(self) -> Capabilities:
        """Returns what its storage can do."""

    async def usage(self) -> Usage:
        """Returns its room and content now."""

    async def create_layer(self, holder: Holder, wanted: NewLayer) -> PlacedLayer:
        """Makes a partial layer, or returns the one that the job has for this disk."""

    async def open_layer(self, holder: Holder, layer_id: str) -> WritableImage:
        """Returns where an unsealed layer is written."""

    async def set_areas(self, holder: Holder, layer_id: str, areas: Iterable[Extent]) -> FixedAreas:
        """Fixes what is to be copied into a layer."""

    async def remaining_areas(self, layer_id: str) -> list[Extent]:
        """Returns what is still to be copied."""

    async def journal_position(self, layer_id: str) -> JournalPosition:
        """Returns how far an unsealed layer's journal is."""

    async def append_journal(self, holder: Holder, layer_id: str, sequence: int, encoded: bytes) -> JournalPosition:
        """Commits a flushed batch."""

    async def seal_layer(self, holder: Holder, layer_id: str, reason: str) -> PlacedLayer:
        """Proves a layer, makes it durable and immutable."""

    async def discard_layer(self, holder: Holder, layer_id: str) -> None:
        """Removes a layer that no point holds."""

    async def list_layers(self, vm_uuid: str) -> list[LayerRecord]:
        """Returns a VM's layers, oldest first."""

    async def find_layer(self, layer_id: str) -> PlacedLayer:
        """Returns one layer."""

    async def plan_deletion(self, backup_ids: Collection[str], *, cascade: bool) -> DeletionPlan:
        """Says what deleting points would do."""

    async def delete(self, holder: Holder, backup_ids: Collection[str], *, cascade: bool) -> Deletion:
        """Deletes points; others keep their content."""

    async def consolidate(self, holder: Holder, first_backup_id: str, last_backup_id: str) -> Operation:
        """Starts or joins the merging of a run of points into the last of them."""

    async def verify(self, layer_id: str) -> list[Damage]:
        """Reads a sealed layer back and returns what is not as it was sealed."""
