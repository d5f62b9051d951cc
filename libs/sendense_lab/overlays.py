"""What a guest operation works on: a throw-away qcow2 overlay over a disk's chain, and what it held in the end.

qemu knows no sparse deltas. Each is shown to it as a qcow2 image that is metadata only and whose clusters lie in the
delta at their own offsets (qcow2's external data file). The overlay keeps its bytes in such a file too, so they can
be copied into the disk's top without asking qemu again. Formats are always given, never probed: a guest may write
bytes that look like an image header.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense_lab.areas import GRANULARITY, Area, merge
from sendense_lab.errors import LabError
from sendense_lab.programs import run
from sendense_lab.records import Layer

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTERNAL_DATA = 1 << 2
_COPIED = 1 << 63
_L2_ENTRIES = GRANULARITY // 8


@dataclass(frozen=True)
class Overlay:
    """The two files of an overlay.

    Attributes:
        metadata: The qcow2 image.
        data: Its bytes, at the guest's own offsets.
    """

    metadata: Path
    data: Path

    @classmethod
    def named(cls, directory: Path, base: str) -> Overlay:
        """Returns where the overlay of the disk with this base name is."""
        return cls(directory / f"{base}.overlay.qcow2", directory / f"{base}.overlay.data")

    def create(self, capacity: int) -> None:
        """Makes it, empty."""
        self.remove()
        options = f"compat=1.1,cluster_size={GRANULARITY},data_file={self.data}"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(self.metadata), str(capacity))

    def remove(self) -> None:
        """Removes both files."""
        self.metadata.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)

    def content(self) -> tuple[tuple[Area, ...], tuple[Area, ...]]:
        """Returns the areas that hold data, and those that became zeros.

        Raises:
            LabError: qemu put a cluster elsewhere than at its own offset.
        """
        image = {"driver": "qcow2", "backing": None, **_files(self.metadata, self.data, read_only=True)}
        # -U: nobody writes any more, but the kernel may hold the old mount's file for a moment.
        answer = run("qemu-img", "map", "-U", "--output=json", f"json:{json.dumps(image)}")
        written: list[Area] = []
        zeroed: list[Area] = []
        for entry in json.loads(answer):
            area = (entry["start"], entry["start"] + entry["length"])
            if not entry["present"]:
                continue
            if entry["data"] and entry.get("offset") != area[0]:
                raise LabError(f"{self.metadata.name}: a cluster of {area[0]} is at {entry.get('offset')}")
            (written if entry["data"] else zeroed).append(area)
        return merge(written), merge(zeroed)

    def blockdev(self, directory: Path, chain: Sequence[Layer], views: Path) -> dict[str, Any]:
        """Returns the block graph of the overlay over a chain (base first), for qemu-storage-daemon.

        Args:
            directory: The VM's folder in the datastore.
            chain: The layers below.
            views: An empty folder for the deltas' metadata.
        """
        node: dict[str, Any] | None = None
        for layer in chain:
            path = directory / layer.file
            if node is None:
                node = {"driver": "raw", "read-only": True, "file": _file(path, read_only=True)}
            else:
                view = views / f"{layer.file}.qcow2"
                _write_view(view, path.stat().st_size, layer.areas)
                node = {"driver": "qcow2", "read-only": True, "backing": node, **_files(view, path, read_only=True)}
        top = {"driver": "qcow2", "node-name": "guest", **_files(self.metadata, self.data, read_only=False)}
        return top | {"backing": node}


def _files(metadata: Path, data: Path, *, read_only: bool) -> dict[str, Any]:
    return {"file": _file(metadata, read_only=read_only), "data-file": _file(data, read_only=read_only)}


def _file(path: Path, *, read_only: bool) -> dict[str, Any]:
    """Returns a file node; flushes are not passed on, see the head of `layers`."""
    return {"driver": "file", "filename": str(path), "read-only": read_only, "cache": {"no-flush": True}}


def _write_view(path: Path, capacity: int, areas: Iterable[Area]) -> None:
    """Writes a qcow2 image without data: clusters in `areas` are found at their own offsets of its data file.

    For reading only: it counts no references. Layout: header, refcount table, L1 table, L2 tables, a cluster each
    (one L1 cluster is enough for 4 TiB).
    """
    tables: dict[int, dict[int, int]] = {}
    for start, end in areas:
        for cluster in range(start // GRANULARITY, -(-end // GRANULARITY)):
            tables.setdefault(cluster // _L2_ENTRIES, {})[cluster % _L2_ENTRIES] = cluster * GRANULARITY | _COPIED
    l1_size = -(-capacity // (GRANULARITY * _L2_ENTRIES))
    header = _HEADER.pack(
        *(b"QFI\xfb", 3, 0, 0, GRANULARITY.bit_length() - 1, capacity, 0, l1_size, 2 * GRANULARITY),
        *(GRANULARITY, 1, 0, 0, _EXTERNAL_DATA, 0, 0, 4, _HEADER.size),
    )
    with path.open("wb") as file:
        file.write(header)
        file.truncate((3 + len(tables)) * GRANULARITY)
        for position, (number, entries) in enumerate(tables.items(), start=3):
            file.seek(2 * GRANULARITY + 8 * number)
            file.write(struct.pack(">Q", position * GRANULARITY | _COPIED))
            table = [entries.get(index, 0) for index in range(_L2_ENTRIES)]
            file.seek(position * GRANULARITY)
            file.write(struct.pack(f">{_L2_ENTRIES}Q", *table))
