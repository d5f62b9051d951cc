"""Journals of layers that are being written: opened once, kept open and locked until the layer is sealed or dropped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from sendense_blockio.errors import BlockIOError, JournalLockedError
from sendense_blockio.extents import Extent, subtract
from sendense_blockio.journal import Entry, JournalHeader, JournalWriter, entry_extents, read_journal
from sendense_repository.areas import AreaIndex, AreasDamaged, read_areas
from sendense_repository.errors import AreasNotSet, LayerBusy, LayerDamaged
from sendense_repository.records import LayerRecord


def journal_header(layer: LayerRecord, areas_digest: str) -> JournalHeader:
    """Returns what a layer's journal is bound to."""
    return JournalHeader(
        layer_id=layer.layer_id,
        attempt=layer.attempt,
        change_id=layer.change_id,
        areas_digest=areas_digest,
        virtual_size=layer.virtual_size_bytes,
    )


@dataclass(frozen=True, slots=True)
class OpenJournal:
    """A journal that batches can be appended to."""

    writer: JournalWriter
    areas: AreaIndex

    def append(self, sequence: int, entries: list[Entry]) -> bool:
        """Appends a batch durably; blocks for the disk."""
        return self.writer.append_batch(sequence, entries)


class OpenJournals:
    """At most one open journal for each layer. The caller holds the layer's lock."""

    def __init__(self) -> None:
        self._open: dict[str, OpenJournal] = {}

    async def get(self, layer: LayerRecord, root: Path) -> OpenJournal:
        """Returns a layer's journal, opening it when it is not.

        Raises:
            AreasNotSet: There is none yet.
            LayerDamaged: It, or the area list, is not as written.
        """
        journal = self._open.get(layer.layer_id)
        if journal is None:
            journal = await asyncio.to_thread(_open, layer, root)
            self._open[layer.layer_id] = journal
        return journal

    def close(self, layer_id: str) -> None:
        """Closes a layer's journal, if it is open."""
        journal = self._open.pop(layer_id, None)
        if journal is not None:
            journal.writer.close()

    def close_all(self) -> None:
        """Closes every journal."""
        for layer_id in list(self._open):
            self.close(layer_id)


def _open(layer: LayerRecord, root: Path) -> OpenJournal:
    files = layer.files(root)
    if not layer.areas_digest:
        raise AreasNotSet(layer.layer_id)
    try:
        areas = read_areas(files.areas, layer.areas_digest, layer.virtual_size_bytes)
        writer = JournalWriter.open(files.journal, journal_header(layer, layer.areas_digest))
    except JournalLockedError as error:
        raise LayerBusy(layer.layer_id, "another process") from error
    except (AreasDamaged, BlockIOError, FileNotFoundError) as error:
        raise LayerDamaged(layer.layer_id, str(error)) from error
    return OpenJournal(writer, AreaIndex(areas))


def remaining_areas(layer: LayerRecord, root: Path) -> list[Extent]:
    """Returns what is still to be copied: the areas less what committed batches cover. Blocks for the disk.

    Raises:
        AreasNotSet: No areas were fixed.
        LayerDamaged: The journal or the area list is not as written.
    """
    files = layer.files(root)
    if not layer.areas_digest:
        raise AreasNotSet(layer.layer_id)
    try:
        areas = read_areas(files.areas, layer.areas_digest, layer.virtual_size_bytes)
        journal = read_journal(files.journal, journal_header(layer, layer.areas_digest))
        return subtract(areas, entry_extents(journal.entries))
    except (AreasDamaged, BlockIOError, FileNotFoundError) as error:
        raise LayerDamaged(layer.layer_id, str(error)) from error
