"""Checks one sealed layer, and one points file, against what was recorded when they were made.

Nothing is repaired or changed. What cannot be judged because the machine failed (no qemu, the root not mounted, a lock)
is an error; what is not as it was written is a `Damage`, with its range.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.errors import BlockIOError, JournalCorruptError
from sendense_blockio.extents import Extent, align, intersect, merge, subtract
from sendense_blockio.journal import Entry, Journal, read_journal
from sendense_qemu.errors import HeaderError, StorageDaemonError, StorageDaemonGoneError
from sendense_qemu.header import check_header
from sendense_repository import documents, layout, pointfile
from sendense_repository.documents import DocumentError
from sendense_repository.integrity import Damage
from sendense_repository.journals import journal_header
from sendense_repository.layout import CLUSTER_SIZE
from sendense_repository.parentage import SIDECAR_KIND
from sendense_repository.qcow2_metadata import MetadataError, TableDamage, damaged_tables, read_metadata
from sendense_repository.reading_back import Pace, ReadBack, allocation, differing, differing_edges
from sendense_repository.records import LayerRecord, PointRecord

_NO_FILE_RANGE = -1


@dataclass(slots=True)
class LayerCheck:
    """The check of one layer on its way.

    Args:
        session: Serves images for reading.
        root: The repository's root.
        chain: The layer, then those below it down to the full.
        pace: How fast to read.
        cancel: Set to stop.
        on_bytes: Told of bytes that were read; called in several threads.
    """

    session: ReadBack
    root: Path
    chain: Sequence[LayerRecord]
    pace: Pace
    cancel: threading.Event
    on_bytes: Callable[[int], None]
    found: list[Damage] = field(default_factory=list)
    _distrusted: list[Extent] = field(default_factory=list)

    @property
    def layer(self) -> LayerRecord:
        """The layer that is checked."""
        return self.chain[0]

    async def run(self) -> list[Damage]:
        """Reads the layer and returns what is damaged.

        Raises:
            ReadingCancelled: Somebody asked to stop.
            StorageDaemonError: The image is locked by a writer, or qemu cannot run.
            ConnectionLostError: qemu ended.
        """
        marks = await asyncio.to_thread(self._sidecar)
        journal = await asyncio.to_thread(self._journal)
        if not await asyncio.to_thread(self._tables, marks):
            return self.found
        try:
            await self._content(journal)
        except StorageDaemonGoneError:
            raise
        except StorageDaemonError as error:
            if error.is_locked or error.command != "blockdev-add":
                raise
            self._whole_image(f"qemu cannot open it: {error.detail}")
        return self.found

    def _sidecar(self) -> str:
        """Checks the sidecar; returns the tables' marks that it holds, empty when it cannot be trusted."""
        path = self.layer.files(self.root).sidecar
        try:
            document = documents.read(path, SIDECAR_KIND)
        except DocumentError as error:
            self._file("sidecar", path, error.finding)
            return ""
        except OSError as error:
            self._file("sidecar", path, _why(error))
            return ""
        if document["digest"] != self.layer.digest:
            self._file("sidecar", path, "it is not the one that was sealed")
            return ""
        return str(document.get("metadata_marks", ""))

    def _journal(self) -> Journal | None:
        """Checks the journal; returns it when it is whole."""
        path = self.layer.files(self.root).journal
        try:
            journal = read_journal(path, journal_header(self.layer, self.layer.areas_digest))
        except JournalCorruptError as error:
            self._file("journal", path, str(error), start=error.offset)
            return None
        except BlockIOError as error:
            self._file("journal", path, str(error))
            return None
        except OSError as error:
            self._file("journal", path, _why(error))
            return None
        if journal.torn_bytes:
            start = _size(path) - journal.torn_bytes
            self._file("journal", path, f"its last {journal.torn_bytes} bytes are no whole batch", start=start)
            return None
        if journal.checksum.hex() != self.layer.journal_digest:
            self._file("journal", path, "it is not the one that was sealed")
            return None
        return journal

    def _tables(self, marks: str) -> bool:
        """Checks header and tables; returns whether the image can be read on."""
        image = self.layer.files(self.root).sealed
        below = self.chain[1].name if len(self.chain) > 1 else None
        try:
            header = check_header(image, backing_name=below)
        except FileNotFoundError:
            self._whole_image("it is gone")
            return False
        except HeaderError as error:
            if not self._name_tables(image, marks, error.finding):
                self._table(TableDamage("header", 0, min(CLUSTER_SIZE, _size(image))), error.finding)
            return False
        except OSError as error:
            self._whole_image(_why(error))
            return False
        if (header.virtual_size, header.cluster_size) != (self.layer.virtual_size_bytes, CLUSTER_SIZE):
            finding = f"it says {header.virtual_size} bytes in clusters of {header.cluster_size}"
            self._table(TableDamage("header", 0, CLUSTER_SIZE), finding)
            return False
        try:
            digest, finding = read_metadata(image).digest, "it is not as it was sealed"
        except MetadataError as error:
            digest, finding = "", str(error)
        except OSError as error:
            self._whole_image(_why(error))
            return False
        if digest == self.layer.metadata_digest:
            return True
        return self._name_tables(image, marks, finding, or_all=True)

    def _name_tables(self, image: Path, marks: str, finding: str, *, or_all: bool = False) -> bool:
        """Names the tables that differ from their marks; returns whether what they lead to can be read on.

        Without `or_all`, returns whether any was named.
        """
        try:
            tables = damaged_tables(image, marks)
        except OSError as error:
            tables, finding = [], _why(error)
        for table in tables:
            self._table(table, finding)
        if not or_all:
            return bool(tables)
        if not tables:
            self._table(TableDamage("metadata", 0, _size(image)), finding)
            return False
        return all(table.disk_length is not None for table in tables)

    async def _content(self, journal: Journal | None) -> None:
        image = self.layer.files(self.root).sealed
        # qemu closes an image for good that it finds corrupt: what a damaged table decides about is not looked at.
        trusted = subtract([Extent(0, self.layer.virtual_size_bytes)], merge(sorted(self._distrusted)))
        async with self.session.image([image]) as own:
            seen = await asyncio.to_thread(allocation, own, trusted)
            for each in seen.unreadable:
                self._disk("allocation", each.offset, each.length, "qemu cannot tell what the image holds")
            if journal is None:
                return
            entries = [entry for entry in sorted(journal.entries) if _within(entry, trusted)]
            data = [entry for entry in entries if not entry.is_zero]
            zeroes = merge(_extent(entry) for entry in entries if entry.is_zero)
            if not seen.unreadable:
                self._allocation(data, zeroes, seen.held, trusted)
            stored_zeroes = [Entry(each.offset, each.length, None) for each in intersect(zeroes, seen.not_zero)]
            wanted = sorted([*data, *stored_zeroes])
            for bad in await asyncio.to_thread(differing, own, wanted, self.pace, self.cancel, self.on_bytes):
                self._disk("data", bad.offset, bad.length, bad.finding)
            covered = merge(_extent(entry) for entry in entries)
            edges = intersect(subtract(seen.held, covered), self._clusters(covered))
            if edges:
                await self._edges(own, edges)

    async def _edges(self, own: Endpoint, edges: Sequence[Extent]) -> None:
        below = [layer.files(self.root).sealed for layer in self.chain[1:]]
        if not below:
            found = await asyncio.to_thread(differing_edges, own, None, edges)
        else:
            async with self.session.image(below) as parent:
                found = await asyncio.to_thread(differing_edges, own, parent, edges)
        for bad in found:
            self._disk("data", bad.offset, bad.length, bad.finding)

    def _allocation(
        self, data: Sequence[Entry], zeroes: Sequence[Extent], held: Sequence[Extent], trusted: Sequence[Extent]
    ) -> None:
        """Compares the clusters that the image holds with those of its manifest: no fewer and no more."""
        data_clusters = self._clusters(_extent(entry) for entry in data)
        all_clusters = merge(sorted([*data_clusters, *self._clusters(zeroes)]))
        must = all_clusters if len(self.chain) > 1 else data_clusters
        for lost in intersect(subtract(must, held), trusted):
            self._disk("allocation", lost.offset, lost.length, "journaled bytes that the image does not hold")
        for more in subtract(held, all_clusters):
            self._disk("allocation", more.offset, more.length, "bytes that no journal entry explains")

    def _clusters(self, extents: Iterable[Extent]) -> list[Extent]:
        return align(sorted(extents), CLUSTER_SIZE, self.layer.virtual_size_bytes)

    def _damage(self, part: str, file: Path, file_range: tuple[int, int], disk: tuple[int, int], finding: str) -> None:
        self.found.append(
            Damage(
                backup_id=self.layer.backup_id,
                layer_id=self.layer.layer_id,
                disk_id=self.layer.disk_id,
                part=part,
                file=str(file.relative_to(self.root)),
                file_offset=file_range[0],
                file_length=file_range[1],
                offset=disk[0],
                length=disk[1],
                finding=finding,
            )
        )

    def _file(self, part: str, path: Path, finding: str, *, start: int = 0) -> None:
        """Damage of a file that does not change what the disk reads as, but leaves it without proof."""
        self._damage(part, path, (start, max(0, _size(path) - start)), (0, 0), finding)

    def _disk(self, part: str, offset: int, length: int, finding: str) -> None:
        self._damage(part, self.layer.files(self.root).sealed, (_NO_FILE_RANGE, 0), (offset, length), finding)

    def _table(self, table: TableDamage, finding: str) -> None:
        size = self.layer.virtual_size_bytes
        length = size if table.disk_length is None else table.disk_length
        disk = (table.disk_offset, max(0, min(length, size - table.disk_offset)))
        image = self.layer.files(self.root).sealed
        if disk[1]:
            self._distrusted.append(Extent(*disk))
        self._damage(table.table, image, (table.file_offset, table.file_length), disk, finding)

    def _whole_image(self, finding: str) -> None:
        image = self.layer.files(self.root).sealed
        self._damage("image", image, (0, _size(image)), (0, self.layer.virtual_size_bytes), finding)


def check_point_file(root: Path, point: PointRecord) -> list[Damage]:
    """Checks a points file against the catalogue; blocks for the disk."""
    path = layout.point_file(root, point.vm_uuid, point.backup_id)
    try:
        finding = ""
        if pointfile.read_point(path).record.digest != point.digest:
            finding = "it is not the one that was committed"
    except DocumentError as error:
        finding = error.finding
    except OSError as error:
        finding = _why(error)
    if not finding:
        return []
    file = str(path.relative_to(root))
    return [Damage(point.backup_id, "", -1, "points file", file, 0, _size(path), 0, 0, finding)]


def _within(entry: Entry, extents: Sequence[Extent]) -> bool:
    """Tells whether an entry lies wholly within one of some sorted extents."""
    place = bisect_right(extents, entry.offset, key=lambda extent: extent.offset) - 1
    return place >= 0 and entry.end <= extents[place].end


def _extent(entry: Entry) -> Extent:
    return Extent(entry.offset, entry.length)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _why(error: OSError) -> str:
    return "it is gone" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error.strerror or error}"
