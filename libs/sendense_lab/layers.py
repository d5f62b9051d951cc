"""The files of a disk: a raw base and one qcow2 delta for each open snapshot, as VMware's redo logs.

Formats are always given, never probed: a guest may write bytes that look like an image header into the base.
Nothing here is synchronised to the platter: the lab survives a killed server, not a power cut, and is quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sendense_lab.areas import GRANULARITY, Area, merge
from sendense_lab.programs import run
from sendense_lab.records import Layer

COPY_CHUNK = 1024 * 1024


def create_delta(directory: Path, file: str, backing: Layer, capacity: int) -> None:
    """Creates an empty qcow2 delta over `backing` (both in `directory`)."""
    target = directory / file
    target.unlink(missing_ok=True)
    run(
        *("qemu-img", "create", "-q", "-u", "-f", "qcow2"),
        *("-o", f"compat=1.1,cluster_size={GRANULARITY}"),
        *("-b", backing.file, "-F", backing.format, str(target), str(capacity)),
    )


def own_areas(directory: Path, file: str) -> tuple[Area, ...]:
    """Returns what a qcow2 delta itself holds (written or zeroed), without its backing files."""
    return merge(
        (entry["start"], entry["start"] + entry["length"])
        for entry in _map(directory, file, "qcow2")
        if entry["depth"] == 0
    )


def data_areas(directory: Path, layer: Layer) -> tuple[Area, ...]:
    """Returns the areas of a disk that hold data as seen at this layer, its backing files included."""
    return merge(
        (entry["start"], entry["start"] + entry["length"])
        for entry in _map(directory, layer.file, layer.format)
        if entry["data"]
    )


def _map(directory: Path, file: str, fmt: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(
        # -U: a frozen layer may be mapped while another process holds it open.
        run("qemu-img", "map", "-U", "--output=json", "-f", fmt, str(directory / file))
    )
    return entries


def commit(directory: Path, file: str) -> None:
    """Writes what a qcow2 delta holds into its backing file; may be repeated after a crash."""
    run("qemu-img", "commit", "-q", "-d", "-t", "unsafe", "-f", "qcow2", str(directory / file))


def rebase(directory: Path, file: str, backing: Layer) -> None:
    """Makes a delta point at another backing file of the same content (header only)."""
    run(
        *("qemu-img", "rebase", "-q", "-u", "-f", "qcow2"),
        *("-b", backing.file, "-F", backing.format, str(directory / file)),
    )


def export_raw(directory: Path, layer: Layer, output: Path) -> None:
    """Writes the disk's content at this layer to a sparse raw file."""
    if layer.format == "raw":
        copy_sparse(directory / layer.file, output)
    else:
        run(
            *("qemu-img", "convert", "-q", "-U", "-f", layer.format, "-O", "raw", "-S", "64k", "-t", "unsafe"),
            *(str(directory / layer.file), str(output)),
        )


def copy_sparse(source: Path, target: Path) -> None:
    """Copies a raw file, leaving its holes holes."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        position = 0
        while position < size:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            _copy_range(reader.fileno(), writer.fileno(), start, end)
            position = end


def copy_areas(source: Path, target: Path, areas: Iterable[Area]) -> None:
    """Copies these areas of a raw file to the same offsets of another, which is made when it is missing."""
    with source.open("rb") as reader, os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        for start, end in areas:
            _copy_range(reader.fileno(), writer.fileno(), start, min(end, size))


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    buffer = memoryview(bytearray(min(COPY_CHUNK, end - start)))
    position = start
    while position < end:
        got = os.preadv(source, [buffer[: min(len(buffer), end - position)]], position)
        if got == 0:  # the source is shorter than the disk: the rest is zeros
            return
        written = 0
        while written < got:
            written += os.pwrite(target, buffer[written:got], position + written)
        position += got


def blockdev(directory: Path, chain: Sequence[Layer], overlay: str) -> dict[str, Any]:
    """Returns the block graph of an overlay over a chain (base first), for qemu-storage-daemon.

    Flushes are not passed on: see the head of this module.
    """
    node: dict[str, Any] | None = None
    for layer in chain:
        below, node = node, _node(directory / layer.file, layer.format, read_only=True)
        if below is not None:
            node["backing"] = below
    top = _node(directory / overlay, "qcow2", read_only=False)
    top["backing"] = node
    top["node-name"] = "guest"
    return top


def _node(path: Path, fmt: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "driver": fmt,
        "read-only": read_only,
        "cache": {"no-flush": True},
        "file": {"driver": "file", "filename": str(path), "read-only": read_only, "cache": {"no-flush": True}},
    }
