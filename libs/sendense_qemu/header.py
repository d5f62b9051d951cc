"""qcow2 headers, read and judged in Python before qemu opens a file.

A hostile header makes qemu open another file of the host (backing file, external data file, `json:`), take
gigabytes for its tables, or run code that nobody tests. So a file is looked at here first, against a list of
what is allowed: version 3 with exactly the features that we use ourselves. What is not on the list is
refused, known to qemu or not (fault matrix, rows 25 and 26). oslo.utils' `format_inspector` is asked before.

Field offsets and limits are those of qemu's docs/interop/qcow2.txt and block/qcow2.h. Functions read 4 KiB of
a file and block for that long.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oslo_utils.imageutils import format_inspector

from sendense_qemu.errors import HeaderError

MAX_VIRTUAL_SIZE: Final = 128 << 40
"""128 TiB: twice the largest VMDK (62 TiB), so a larger one is not ours."""

MAX_CHAIN_DEPTH: Final = 512

_FIXED = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")
_VERSION = 3
_HEADER_LENGTHS = frozenset({104, 112})
_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_REFCOUNT_ORDER = 4
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20  # QCOW_MAX_REFTABLE_SIZE
_MAX_BACKING_NAME = 1023
_SECTOR = 512
_START = 4096  # qemu writes extensions and the backing name right behind the header
_LAZY_REFCOUNTS = 1
_INCOMPATIBLE_BITS = {
    0: "is marked dirty",
    1: "is marked corrupt",
    2: "keeps its data in another file",
    3: "uses another compression type",
    4: "uses extended L2 entries",
}
_END, _BACKING_FORMAT, _FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857
_REFUSED_EXTENSIONS = {
    0x23852875: "persistent bitmaps",
    0x0537BE77: "encryption",
    0x44415441: "an external data file",
}


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """The header of a file that qemu may open.

    Attributes:
        path: The file.
        file_size: Bytes of the file.
        virtual_size: Bytes that a guest would see.
        cluster_size: Bytes of a cluster.
        backing_name: The name of the layer below as the header writes it; None for a full.
    """

    path: Path
    file_size: int
    virtual_size: int
    cluster_size: int
    backing_name: str | None


def check_header(path: Path, *, backing_name: str | None) -> Qcow2Header:
    """Judges one file whose layer below is known.

    Args:
        path: The file; a symbolic link is refused.
        backing_name: The only name that its header may give, None when it must stand alone.

    Returns:
        What the header says.

    Raises:
        HeaderError: The file is not a qcow2 image that we let qemu open.
        OSError: It cannot be read.
    """
    header = read_header(path)
    if header.backing_name != backing_name:
        raise HeaderError(path, f"its backing file is {header.backing_name!r}, expected {backing_name!r}")
    return header


def check_chain(path: Path, roots: Sequence[Path], *, max_depth: int = MAX_CHAIN_DEPTH) -> tuple[Qcow2Header, ...]:
    """Judges an image and every layer below it, whatever they are called, if they stay below the roots.

    Args:
        path: The top image.
        roots: The folders that a layer may lie in; symbolic links do not lead out of them.
        max_depth: The most layers that are followed.

    Returns:
        The headers from the top image down to the full.

    Raises:
        HeaderError: A layer is missing, outside, met twice, one too many, or not one that we let qemu open.
        OSError: A layer cannot be read.
    """
    real_roots = [root.resolve() for root in roots]
    headers: list[Qcow2Header] = []
    seen: set[Path] = set()
    name: str | None = str(path.absolute())
    here = path.parent
    while name is not None:
        if headers and (name.startswith("/") or ":" in name.partition("/")[0]):
            raise HeaderError(headers[-1].path, f"its backing file {name!r} is not a relative file name")
        layer = _resolve_below(here / name, real_roots, refer=headers[-1].path if headers else path)
        if layer in seen:
            raise HeaderError(headers[-1].path, f"its backing file {name!r} leads back to itself")
        if len(headers) >= max_depth:
            raise HeaderError(path, f"its chain has more than {max_depth} layers")
        seen.add(layer)
        header = read_header(layer)
        headers.append(header)
        here, name = layer.parent, header.backing_name
    return tuple(headers)


def _resolve_below(path: Path, roots: Sequence[Path], *, refer: Path) -> Path:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise HeaderError(refer, f"{path} is missing") from error
    if not any(real.is_relative_to(root) for root in roots):
        raise HeaderError(refer, f"{real} is outside of the folders that images may lie in")
    return real


def read_header(path: Path) -> Qcow2Header:
    """Judges one file by itself; the caller judges the backing file's name.

    Args:
        path: The file; a symbolic link is refused.

    Returns:
        What the header says.

    Raises:
        HeaderError: The file is not a qcow2 image that we let qemu open.
        OSError: It cannot be read.
    """
    start, file_size = _read_start(path)
    if len(start) < _SECTOR or start[:4] != b"QFI\xfb":
        raise HeaderError(path, "it is no qcow2 image")
    fields = _FIXED.unpack_from(start)
    (_, version, backing_offset, backing_length, cluster_bits, virtual_size, crypt_method, l1_entries) = fields[:8]
    (l1_offset, refcount_offset, refcount_clusters, snapshots, _, incompatible, compatible) = fields[8:15]
    (autoclear, refcount_order, header_length) = fields[15:]
    _check_features(path, version, header_length, incompatible, compatible, autoclear, start)
    _check_with_oslo(path, start, has_backing=backing_offset != 0)
    if crypt_method != 0:
        raise HeaderError(path, "it is encrypted")
    if snapshots != 0:
        raise HeaderError(path, f"it has {snapshots} internal snapshots")
    if not _MIN_CLUSTER_BITS <= cluster_bits <= _MAX_CLUSTER_BITS:
        raise HeaderError(path, f"its clusters are 2^{cluster_bits} bytes")
    if refcount_order != _REFCOUNT_ORDER:
        raise HeaderError(path, f"its refcounts are 2^{refcount_order} bits")
    cluster = 1 << cluster_bits
    _check_tables(path, file_size, virtual_size, cluster, (l1_offset, l1_entries), (refcount_offset, refcount_clusters))
    first_cluster = start[:cluster]
    formats, extensions_end = _read_extensions(path, first_cluster, header_length, backing_offset)
    name = _backing_name(path, first_cluster, backing_offset, backing_length, extensions_end)
    if formats != ([b"qcow2"] if name is not None else []):
        raise HeaderError(path, f"its backing format is {formats!r}, not qcow2 beside a backing file only")
    return Qcow2Header(path, file_size, virtual_size, cluster, name)


def _read_start(path: Path) -> tuple[bytes, int]:
    """The first 4 KiB, and the file's size; O_NONBLOCK so that a FIFO does not hold us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise HeaderError(path, "it is a symbolic link") from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise HeaderError(path, "it is no regular file")
        return os.pread(fd, _START, 0), status.st_size
    finally:
        os.close(fd)


def _check_with_oslo(path: Path, start: bytes, *, has_backing: bool) -> None:
    inspector = format_inspector.QcowInspector()
    inspector.eat_chunk(start)
    inspector.finish()
    if not inspector.complete or not inspector.format_match:
        raise HeaderError(path, "it is no qcow2 image")
    checks = [inspector.check_unknown_features, inspector.check_data_file]
    if not has_backing:  # a backing file is a failure for oslo; ours is judged by its name
        checks.append(inspector.check_backing_file)
    for check in checks:
        try:
            check()
        except format_inspector.SafetyViolation as error:
            raise HeaderError(path, str(error)) from error


def _check_features(
    path: Path,
    version: int,
    header_length: int,
    incompatible: int,
    compatible: int,
    autoclear: int,
    start: bytes,
) -> None:
    if version != _VERSION:
        raise HeaderError(path, f"it is version {version}, not 3 (compat 1.1)")
    if header_length not in _HEADER_LENGTHS:
        raise HeaderError(path, f"its header is {header_length} bytes long")
    for bit, finding in _INCOMPATIBLE_BITS.items():
        if incompatible >> bit & 1:
            raise HeaderError(path, f"it {finding}")
    if incompatible:
        raise HeaderError(path, f"it has unknown incompatible features {incompatible:#x}")
    if compatible & ~_LAZY_REFCOUNTS:
        raise HeaderError(path, f"it has unknown compatible features {compatible:#x}")
    if autoclear:
        raise HeaderError(path, f"it has autoclear features {autoclear:#x}")
    if any(start[_FIXED.size : header_length]):
        raise HeaderError(path, "it is compressed in another way than zlib")


def _check_tables(
    path: Path,
    file_size: int,
    virtual_size: int,
    cluster: int,
    l1: tuple[int, int],
    refcounts: tuple[int, int],
) -> None:
    if virtual_size == 0 or virtual_size % _SECTOR or virtual_size > MAX_VIRTUAL_SIZE:
        raise HeaderError(path, f"its virtual size is {virtual_size} bytes")
    l1_offset, l1_entries = l1
    per_entry = cluster * (cluster // 8)
    needed = -(-virtual_size // per_entry)
    # qemu grows an L1 table by half when an image is enlarged: it may be longer than needed, but not by much.
    if not needed <= l1_entries <= 2 * needed + 1 or l1_entries * 8 > _MAX_L1_BYTES:
        raise HeaderError(path, f"its L1 table has {l1_entries} entries where {needed} are needed")
    _check_place(path, "L1 table", l1_offset, l1_entries * 8, cluster, file_size)
    refcount_offset, refcount_clusters = refcounts
    size = refcount_clusters * cluster
    if size == 0 or size > _MAX_REFCOUNT_TABLE_BYTES:
        raise HeaderError(path, f"its refcount table has {refcount_clusters} clusters")
    _check_place(path, "refcount table", refcount_offset, size, cluster, file_size)


def _check_place(path: Path, what: str, offset: int, size: int, cluster: int, file_size: int) -> None:
    if offset % cluster or offset < cluster:
        raise HeaderError(path, f"its {what} is at {offset}")
    # The last cluster of a file need not be there in full.
    if offset + size > -(-file_size // cluster) * cluster:
        raise HeaderError(path, f"its {what} ends at {offset + size}, behind the file's end at {file_size}")


def _read_extensions(path: Path, first_cluster: bytes, position: int, backing_offset: int) -> tuple[list[bytes], int]:
    """Reads the extensions behind the header: backing formats that are given, and where extensions end."""
    end = backing_offset or len(first_cluster)
    formats: list[bytes] = []
    while True:
        if position + _EXTENSION.size > min(end, len(first_cluster)):
            if position == end and backing_offset:
                return formats, position  # the name may follow at once, without an end mark
            raise HeaderError(path, "its header extensions have no end")
        kind, length = _EXTENSION.unpack_from(first_cluster, position)
        position += _EXTENSION.size
        if kind == _END:
            return formats, position
        if kind in _REFUSED_EXTENSIONS:
            raise HeaderError(path, f"it has {_REFUSED_EXTENSIONS[kind]}")
        if kind not in {_BACKING_FORMAT, _FEATURE_NAMES}:
            raise HeaderError(path, f"it has an unknown header extension {kind:#010x}")
        if position + length > end:
            raise HeaderError(path, f"its header extension {kind:#010x} is {length} bytes long")
        if kind == _BACKING_FORMAT:
            formats.append(first_cluster[position : position + length])
        position += -(-length // 8) * 8


def _backing_name(path: Path, first_cluster: bytes, offset: int, length: int, extensions_end: int) -> str | None:
    if offset == 0:
        if length != 0:
            raise HeaderError(path, f"its backing file's name has {length} bytes at no place")
        return None
    if not 0 < length <= _MAX_BACKING_NAME or offset < extensions_end or offset + length > len(first_cluster):
        raise HeaderError(path, f"its backing file's name has {length} bytes at {offset}")
    try:
        name = first_cluster[offset : offset + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(path, "its backing file's name is no UTF-8") from error
    if "\0" in name:
        raise HeaderError(path, "its backing file's name holds a NUL")
    return name
