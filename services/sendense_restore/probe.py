"""What lies on a disk: partitions by sfdisk, file systems by blkid's low-level probing, all in user space.

Nothing is attached to the kernel before it is known to hold a file system that we mount, and no probing goes
through udev.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense_restore.programs import ProgramError, run
from sendense_restore.volume import Volume

MAX_PARTITIONS = 128
"""More are not looked at: a GPT has 128, and a hostile table could name thousands."""
_NOTHING_FOUND = 2
_AMBIVALENT = 8
_EXTENDED = frozenset({"5", "f", "85"})
_HEX = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk: number, place in bytes, uuid and name as the guest's udev would tell them."""

    number: int
    offset_bytes: int
    size_bytes: int
    uuid: str
    label: str


@dataclass(frozen=True, slots=True)
class Signature:
    """What blkid recognises in a range of bytes; all empty for nothing.

    Attributes:
        file_system: Such as `ext4`, `crypto_LUKS`, `LVM2_member`, `swap`.
        usage: `filesystem`, `raid`, `crypto` or `other`.
        label: Label.
        uuid: Uuid.
        table: Kind of partition table, such as `gpt`.
        ambivalent: Several signatures contradict one another.
    """

    file_system: str = ""
    usage: str = ""
    label: str = ""
    uuid: str = ""
    table: str = ""
    ambivalent: bool = False


async def probe_disk(disk_id: int, image: Path, size_bytes: int) -> list[Volume]:
    """Returns the volumes of a disk, in the order of their numbers; never none.

    Args:
        disk_id: Number of the disk.
        image: Raw file with its content.
        size_bytes: Its length.

    Raises:
        ProgramError: A probing program is missing or was killed.
    """
    whole = await _signature(image, 0, size_bytes)
    partitions = [] if whole.usage == "filesystem" and not whole.table else await _partitions(image)
    if not partitions:
        return [_volume(disk_id, Partition(0, 0, size_bytes, "", ""), whole)]
    volumes = []
    for partition in partitions:
        if partition.offset_bytes + partition.size_bytes > size_bytes or not partition.size_bytes:
            signature = Signature()
        else:
            signature = await _signature(image, partition.offset_bytes, partition.size_bytes)
        volumes.append(_volume(disk_id, partition, signature))
    return volumes


def _volume(disk_id: int, partition: Partition, signature: Signature) -> Volume:
    return Volume(
        disk_id=disk_id,
        partition=partition.number,
        offset_bytes=partition.offset_bytes,
        size_bytes=partition.size_bytes,
        file_system=signature.file_system,
        usage=signature.usage,
        label=signature.label,
        uuid=signature.uuid,
        part_uuid=partition.uuid,
        part_label=partition.label,
        error="several file system signatures contradict one another" if signature.ambivalent else "",
    )


async def _partitions(image: Path) -> list[Partition]:
    try:
        ended = await run(["sfdisk", "--json", "--", str(image)])
    except ProgramError as error:
        if error.status is None:
            raise
        return []  # no partition table that sfdisk knows
    return parse_partitions(ended.stdout)


def parse_partitions(text: bytes) -> list[Partition]:
    """Reads sfdisk's JSON; containers of logical partitions are left out."""
    table: dict[str, Any] = json.loads(text)["partitiontable"]
    sector = int(table.get("sectorsize", 512))
    is_dos = table.get("label") == "dos"
    disk_signature = str(table.get("id", "")).removeprefix("0x").lower()
    partitions: list[Partition] = []
    for row in table.get("partitions", ()):
        number = re.search(r"\d+$", row["node"])
        if number is None or (is_dos and row.get("type", "").lower() in _EXTENDED):
            continue
        index = int(number.group())
        uuid = str(row.get("uuid", "")).lower() or (f"{disk_signature}-{index:02x}" if is_dos else "")
        partitions.append(
            Partition(index, int(row["start"]) * sector, int(row["size"]) * sector, uuid, str(row.get("name", "")))
        )
    return sorted(partitions, key=lambda partition: partition.number)[:MAX_PARTITIONS]


async def _signature(image: Path, offset: int, size: int) -> Signature:
    command = ["blkid", "--probe", "--output", "udev", "--offset", str(offset), "--size", str(size), "--", str(image)]
    ended = await run(command, ok=frozenset({0, _NOTHING_FOUND, _AMBIVALENT}))
    if ended.status == _AMBIVALENT:
        return Signature(ambivalent=True)
    return parse_signature(ended.stdout)


def parse_signature(text: bytes) -> Signature:
    r"""Reads blkid's udev output, where `…_ENC` values hold odd characters as `\xNN`."""
    facts = dict(line.split(b"=", 1) for line in text.splitlines() if b"=" in line)

    def fact(name: bytes) -> str:
        raw = _HEX.sub(lambda match: bytes([int(match.group(1), 16)]), facts.get(name, b""))
        return raw.decode("utf-8", "replace")

    return Signature(
        file_system=fact(b"ID_FS_TYPE"),
        usage=fact(b"ID_FS_USAGE"),
        label=fact(b"ID_FS_LABEL_ENC"),
        uuid=fact(b"ID_FS_UUID_ENC"),
        table=fact(b"ID_PART_TABLE_TYPE"),
    )
