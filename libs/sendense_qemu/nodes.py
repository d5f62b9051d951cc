"""How an image becomes block nodes of qemu-storage-daemon, every layer named with its format.

What always holds: no format is probed and no header is followed, since each backing node is given explicitly and
the last one is told that it has none; images are locked; whatever lies below the top image is read-only.

TRIM. qemu advertises TRIM on every writable export, and neither of its settings is right for an image with a
layer below: with `discard=ignore` it succeeds and changes nothing, with `discard=unmap` it zeroes whole clusters
and leaves the rest as it was (tried, qemu 7.2). A client that takes "trimmed" for "zero" would then read what was
there before. So an image that is written for good gets a filter that makes TRIM fail with EPERM, while
WRITE_ZEROES, which is exact, passes (`refuse_discard`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Aio = Literal["io_uring", "native", "threads"]
Discard = Literal["ignore", "unmap"]

MAX_NODE_NAME = 31
"""qemu's limit for a node name, in bytes."""

LEAST_CACHE_BYTES = 1 << 20
"""16 L2 tables of 64 KiB, which show where 8 GiB are: enough for whoever goes through a disk in order."""

CACHE_BYTES = 128 << 20
"""qemu alone would take up to 32 MiB for each layer: 128 exports of 1 TiB, or a few deep chains, fill 4 GiB (tried)."""


PREALLOCATED_BYTES = 32 << 20
"""How far a file that is being written grows ahead of its data. On ext4 with direct I/O each write beyond the end of
the file is serialised: 54 MiB in 64 KiB pieces took 0.25 s, 0.16 s of it CPU; with this 0.13 s and 0.035 s (ADR 13).
A file is cut back when it is closed; after a kill so much may stay behind the image, for the next writer."""

WHOLE_BLOCK = 4096
"""What direct I/O counts in, at most. qemu reads a file's end in such units, so a file that ends elsewhere is read
short there, and qemu 7.2 (block/io_uring.c) may then wait for ever: when it finds the short answer inside
`ioq_submit`, it queues the rest and submits it with the *next* request only. Tried on ext4: a client that asks for one
thing at a time gets no answer after some 300 reads of the last sector; with threads, or `native`, it always does."""


@dataclass(frozen=True, slots=True)
class FileAccess:
    """How files are opened: past the page cache or through it, and which kernel interface carries requests.

    Attributes:
        direct: O_DIRECT; 4.5 to 5 times as fast as buffered on a disk (performance.md).
        aio: `native` needs `direct`.
    """

    direct: bool
    aio: Aio


def supports_direct_io(path: Path) -> bool:
    """Tells whether the file's file system opens it with O_DIRECT (some network and overlay ones refuse).

    Args:
        path: An existing file or block device.

    Raises:
        OSError: It cannot be opened for reading at all.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
            return False
        raise
    os.close(fd)
    return True


def file_access(path: Path, aio: Aio) -> FileAccess:
    """Chooses how to open a file, given the fastest interface that the daemon has.

    Raises:
        OSError: The file cannot be opened for reading.
    """
    direct = supports_direct_io(path)
    return FileAccess(direct=direct, aio="threads" if aio == "native" and not direct else aio)


def qcow2_node(
    node_name: str,
    chain: Sequence[Path],
    access: FileAccess,
    *,
    read_only: bool,
    discard: Discard = "ignore",
    cache_bytes: int = CACHE_BYTES,
    preallocate: bool = False,
) -> dict[str, Any]:
    """Describes a qcow2 image with all its layers for `blockdev-add`.

    Args:
        node_name: Name of the top node, at most 31 bytes.
        chain: The image, then each layer below it down to the full.
        access: How all of them are opened.
        read_only: Whether the top image is read-only too.
        discard: What a TRIM does to the top image, see this module's text.
        cache_bytes: The most memory for L2 tables of all layers together; each has an equal share, at least 1 MiB.
        preallocate: Let the top image's file grow in large steps, ahead of what is written; for images that are filled.
    """
    share = max(cache_bytes // max(len(chain), 1), LEAST_CACHE_BYTES)
    below: dict[str, Any] | None = None
    for depth, path in reversed(list(enumerate(chain))):
        closed = read_only or depth > 0
        below = {
            "driver": "qcow2",
            "read-only": closed,
            "cache": _cache(access),
            "l2-cache-size": share,
            "file": _file_node(path, access, read_only=closed),
            "backing": below,
        }
        if preallocate and not closed:
            below["file"] = {"driver": "preallocate", "prealloc-size": PREALLOCATED_BYTES, "file": below["file"]}
    if below is None:
        raise ValueError("a chain has at least one image")
    return {**below, "node-name": _node_name(node_name), "discard": discard}


def raw_node(
    node_name: str,
    path: Path,
    access: FileAccess,
    *,
    read_only: bool,
    discard: Discard = "ignore",
    size_bytes: int | None = None,
) -> dict[str, Any]:
    """Describes a raw file or a block device for `blockdev-add`.

    Args:
        node_name: Name of the node, at most 31 bytes.
        path: The file or device.
        access: How it is opened.
        read_only: Whether it is opened for reading only.
        discard: What a TRIM does: nothing, or punch a hole, which in a file reads as zeroes.
        size_bytes: Serve only so many bytes of it.

    Raises:
        OSError: The path cannot be looked at.
    """
    node: dict[str, Any] = {
        "driver": "raw",
        "node-name": _node_name(node_name),
        "read-only": read_only,
        "cache": _cache(access),
        "discard": discard,
        "file": {**_file_node(path, access, read_only=read_only), "discard": discard},
    }
    if size_bytes is not None:
        node["size"] = size_bytes
    return node


def refuse_discard(image: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a filter over an image that refuses TRIM and passes everything else; it takes the image's node name.

    qemu has no option for that; its `blkdebug` filter fails chosen kinds of request for good. Both nodes are opened
    and closed as one.

    Args:
        image: The image, as `qcow2_node` describes it.
    """
    below = {key: value for key, value in image.items() if key != "node-name"}
    return {
        "driver": "blkdebug",
        "node-name": image["node-name"],
        "image": below,
        # ENOTSUP would be swallowed by qemu's block layer; and without `unmap` TRIM would not reach the filter.
        "discard": "unmap",
        "inject-error": [{"event": "none", "iotype": "discard", "errno": errno.EPERM}],
    }


def _file_node(path: Path, access: FileAccess, *, read_only: bool) -> dict[str, Any]:
    found = path.stat()
    is_device = stat.S_ISBLK(found.st_mode)
    is_whole = is_device or found.st_size % WHOLE_BLOCK == 0
    return {
        "driver": "host_device" if is_device else "file",
        "filename": str(path.absolute()),
        "read-only": read_only,
        "locking": "on",
        "aio": access.aio if is_whole or access.aio != "io_uring" else "threads",
        "cache": _cache(access),
        "discard": "unmap",
    }


def _cache(access: FileAccess) -> dict[str, bool]:
    return {"direct": access.direct, "no-flush": False}


def _node_name(name: str) -> str:
    if not 0 < len(name.encode()) <= MAX_NODE_NAME:
        raise ValueError(f"node name {name!r} is not 1 to {MAX_NODE_NAME} bytes long")
    return name
