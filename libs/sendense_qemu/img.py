"""qemu-img as typed coroutines: argument lists, formats always given, limits on every process.

What always holds: no format is ever probed (every function takes it, and creating with a backing file writes
it into the header), and a path is given as an absolute one, so nothing in a name is taken for a protocol such
as `json:` or `nbd:`. Commands whose image has backing files let qemu follow the header: check the chain first
with `sendense_qemu.header`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sendense_qemu.errors import QemuImgError
from sendense_qemu.nodes import WHOLE_BLOCK
from sendense_qemu.process import BULK, QUICK, Finished, Limits, run

Format = Literal["qcow2", "raw"]
"""The two formats that Sendense writes and reads."""

DEFAULT_CLUSTER_SIZE = 65536
_CHECK_FOUND_ERRORS = 2
_CHECK_FOUND_LEAKS = 3
_COMPARE_DIFFERS = 1


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What `qemu-img info` says of one image (not of its backing files).

    Attributes:
        path: The image.
        format: The format it was opened with.
        virtual_size: Bytes that a guest would see.
        actual_size: Bytes that the file takes on its disk.
        cluster_size: Bytes a cluster, None for raw.
        backing_name: As the header writes it, None when there is none.
        backing_format: As the header writes it, None when it does not.
        compat: "1.1" for version 3, None for raw.
    """

    path: Path
    format: str
    virtual_size: int
    actual_size: int
    cluster_size: int | None
    backing_name: str | None
    backing_format: str | None
    compat: str | None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `qemu-img check` found; counts are after repairs where repairs were asked for.

    Attributes:
        corruptions: Places where metadata contradicts itself: the image must not be used.
        leaks: Clusters that are allocated but used by nothing: harmless, they only take room.
        leaks_fixed: Leaks that were repaired.
        image_end_offset: The last byte in use, for a file of exactly that length.
        allocated_clusters: Clusters that hold data.
    """

    corruptions: int
    leaks: int
    leaks_fixed: int
    image_end_offset: int | None
    allocated_clusters: int | None

    @property
    def is_sound(self) -> bool:
        """Whether metadata is consistent (leaks do not count)."""
        return self.corruptions == 0


@dataclass(frozen=True, slots=True)
class MapExtent:
    """One run of `qemu-img map`: bytes [start, start+length) and which layer gives them.

    Attributes:
        start: Byte offset in the virtual disk.
        length: Bytes.
        depth: 0 for the image itself, 1 for its backing file, and so on.
        zero: Reads as zeroes.
        data: Is stored as data.
        present: Is given by some layer of the chain at all.
        offset: Where plain data begins in that layer's file; None where it is not stored, or compressed.
    """

    start: int
    length: int
    depth: int
    zero: bool
    data: bool
    present: bool
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Whether two images have the same content, and what qemu-img said (the first offset that differs)."""

    identical: bool
    detail: str


async def create_qcow2(
    path: Path,
    virtual_size: int | None,
    *,
    backing_name: str | None = None,
    backing_format: Format = "qcow2",
    cluster_size: int = DEFAULT_CLUSTER_SIZE,
    options: Mapping[str, str] | None = None,
    limits: Limits = QUICK,
) -> None:
    """Creates a qcow2 image, compat 1.1.

    Args:
        path: The new file. An existing one is overwritten: the caller owns the name.
        virtual_size: Bytes; None takes the backing file's size.
        backing_name: Relative name of the layer below, as it shall stand in the header.
        backing_format: Its format, written into the header.
        cluster_size: Bytes, a power of two from 512 to 2 MiB.
        options: Further creation options of qemu's qcow2 driver.
        limits: What the process may use.

    Raises:
        ValueError: The backing name is absolute, names a protocol, or size and backing are both missing.
        QemuImgError: qemu-img refused.
    """
    if virtual_size is None and backing_name is None:
        raise ValueError(f"{path}: a new image needs a virtual size or a backing file")
    given = {"compat": "1.1", "cluster_size": str(cluster_size), "lazy_refcounts": "off", **(options or {})}
    command = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if backing_name is not None:
        command += ["-F", backing_format, "-b", _relative_name(backing_name)]
    command += ["-o", ",".join(f"{key}={value.replace(',', ',,')}" for key, value in given.items())]
    command.append(_operand(path))
    if virtual_size is not None:
        command.append(str(virtual_size))
    await run(command, limits)
    # qemu-img ends the file within its last table, which would cost it io_uring (`nodes.WHOLE_BLOCK`).
    size = path.stat().st_size  # noqa: ASYNC240  # a stat
    os.truncate(path, size + -size % WHOLE_BLOCK)


async def info(path: Path, fmt: Format, *, force_share: bool = False, limits: Limits = QUICK) -> ImageInfo:
    """Returns an image's sizes and header fields; backing files are not opened.

    Args:
        path: The image.
        fmt: Its format.
        force_share: Look even while a writer has it open; the answer may then be of a moment ago.
        limits: What the process may use.

    Raises:
        QemuImgError: The file is missing, locked or not of that format.
    """
    share = ["-U"] if force_share else []
    finished = await run(["qemu-img", "info", "--output=json", "-f", fmt, *share, _operand(path)], limits)
    said: dict[str, Any] = json.loads(finished.stdout)
    specific = said.get("format-specific", {}).get("data", {})
    return ImageInfo(
        path=path,
        format=said["format"],
        virtual_size=said["virtual-size"],
        actual_size=said.get("actual-size", 0),
        cluster_size=said.get("cluster-size"),
        backing_name=said.get("backing-filename"),
        backing_format=said.get("backing-filename-format"),
        compat=specific.get("compat"),
    )


async def check(path: Path, *, repair_leaks: bool = False, limits: Limits = BULK) -> CheckResult:
    """Checks a qcow2 image's metadata.

    Corruption is a result, not an error; data is not read, so a damaged cluster is not seen here.

    Args:
        path: The image; nobody may be writing to it.
        repair_leaks: Give leaked clusters back (writes to the file). Nothing else is ever repaired.
        limits: What the process may use.

    Raises:
        QemuImgError: The file is missing, locked or too broken to be checked.
    """
    repair = ["-r", "leaks"] if repair_leaks else []
    ok = frozenset({0, _CHECK_FOUND_ERRORS, _CHECK_FOUND_LEAKS})
    finished = await run(["qemu-img", "check", "--output=json", "-f", "qcow2", *repair, _operand(path)], limits, ok=ok)
    said = _json_object(finished, path)
    return CheckResult(
        corruptions=said.get("corruptions", 0) + said.get("check-errors", 0),
        leaks=said.get("leaks", 0),
        leaks_fixed=said.get("leaks-fixed", 0),
        image_end_offset=said.get("image-end-offset"),
        allocated_clusters=said.get("allocated-clusters"),
    )


async def map_depths(path: Path, fmt: Format, *, limits: Limits = BULK) -> list[MapExtent]:
    """Returns which layer of the chain gives each run of bytes, from offset 0 to the virtual size.

    Args:
        path: The image.
        fmt: Its format.
        limits: What the process may use.

    Raises:
        QemuImgError: The chain cannot be read.
    """
    finished = await run(["qemu-img", "map", "--output=json", "-f", fmt, _operand(path)], limits)
    return await asyncio.to_thread(_parse_map, finished.stdout)


def _parse_map(stdout: bytes) -> list[MapExtent]:
    return [
        MapExtent(
            start=run_["start"],
            length=run_["length"],
            depth=run_["depth"],
            zero=run_["zero"],
            data=run_["data"],
            present=run_.get("present", True),
            offset=run_.get("offset"),
        )
        for run_ in json.loads(stdout)
    ]


async def compare(a: Path, fmt_a: Format, b: Path, fmt_b: Format, *, limits: Limits = BULK) -> CompareResult:
    """Compares two images' contents; a longer one is equal where the rest is zeroes.

    Args:
        a: One image.
        fmt_a: Its format.
        b: The other.
        fmt_b: Its format.
        limits: What the process may use.

    Raises:
        QemuImgError: One of them cannot be read.
    """
    command = ["qemu-img", "compare", "-f", fmt_a, "-F", fmt_b, _operand(a), _operand(b)]
    finished = await run(command, limits, ok=frozenset({0, _COMPARE_DIFFERS}))
    detail = finished.stdout.decode("utf-8", "replace").strip()
    return CompareResult(identical=finished.status == 0, detail=detail)


async def convert(
    source: Path,
    source_format: Format,
    target: Path,
    target_format: Format,
    *,
    options: Mapping[str, str] | None = None,
    limits: Limits = BULK,
) -> None:
    """Writes an image's whole content (its chain flattened) into a new file.

    Args:
        source: The image to read.
        source_format: Its format.
        target: The new file; an existing one is overwritten.
        target_format: Its format.
        options: Creation options for the target.
        limits: What the process may use.

    Raises:
        QemuImgError: Reading or writing failed; the target is then unusable.
    """
    command = ["qemu-img", "convert", "-q", "-f", source_format, "-O", target_format]
    if options:
        command += ["-o", ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items())]
    await run([*command, _operand(source), _operand(target)], limits)


async def commit(path: Path, *, base: Path | None = None, limits: Limits = BULK) -> None:
    """Writes a qcow2 image's own clusters into its backing file, keeping the image as it is.

    Never use it on a sealed base (DESIGN 4, merging): commit into a copy.

    Args:
        path: The image whose clusters move down.
        base: The layer of the chain that receives them; None: the one right below.
        limits: What the process may use.

    Raises:
        QemuImgError: The base is read-only or locked, or writing failed.
    """
    into = ["-b", _operand(base)] if base is not None else []
    await run(["qemu-img", "commit", "-q", "-d", "-f", "qcow2", *into, _operand(path)], limits)


async def rebase(
    path: Path,
    backing_name: str | None,
    *,
    backing_format: Format = "qcow2",
    header_only: bool = False,
    limits: Limits = BULK,
) -> None:
    """Gives a qcow2 image another backing file.

    Args:
        path: The image.
        backing_name: The new relative name; None makes it stand alone.
        backing_format: The format to write beside it.
        header_only: Only write the name (`rebase -u`); right only if the new backing file has the same
            content. Otherwise clusters that differ are copied into the image first.
        limits: What the process may use.

    Raises:
        ValueError: The backing name is absolute or names a protocol.
        QemuImgError: qemu-img refused.
    """
    unsafe = ["-u"] if header_only else []
    below = ["-b", ""] if backing_name is None else ["-F", backing_format, "-b", _relative_name(backing_name)]
    await run(["qemu-img", "rebase", "-q", "-f", "qcow2", *unsafe, *below, _operand(path)], limits)


def _operand(path: Path) -> str:
    """A path as qemu-img's operand: absolute, so it starts with no dash and no protocol."""
    return str(path.absolute())


def _relative_name(name: str) -> str:
    if not name or name.startswith(("/", "-")) or ":" in name.partition("/")[0] or "\0" in name:
        raise ValueError(f"{name!r} is no relative file name for a backing file")
    return name


def _json_object(finished: Finished, path: Path) -> dict[str, Any]:
    try:
        said = json.loads(finished.stdout)
    except ValueError as error:
        stderr = finished.stderr.decode("utf-8", "replace").strip()
        raise QemuImgError(["qemu-img", "check", str(path)], finished.status, stderr) from error
    if not isinstance(said, dict):
        raise QemuImgError(["qemu-img", "check", str(path)], finished.status, "printed no JSON object")
    return said
