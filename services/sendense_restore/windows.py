r"""Which of a Windows guest's volumes has which drive letter: HKLM\SYSTEM\MountedDevices, and the system's name.

A letter's value is the disk's signature and the partition's offset on MBR disks, `DMIO:ID:` and the partition's GUID on
GPT disks; other devices (floppies, sticks) have a name, which is nothing of ours.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from sendense_restore.entries import names_in
from sendense_restore.errors import FileMissing, FileUnreadable, NotADirectory
from sendense_restore.paths import GuestPath, read_file
from sendense_restore.registry import MAX_BYTES, Hive, HiveError
from sendense_restore.volume import Volume

log = structlog.get_logger()

_CONFIG = ("windows", "system32", "config")
_LETTER = re.compile(r"\\DosDevices\\([A-Za-z]:)")
_GPT = b"DMIO:ID:"


def drive_letters(volumes: Sequence[Volume], roots: Mapping[str, Path]) -> dict[str, str]:
    """Returns for each volume's name its letter, such as `C:`; empty when none is told. Blocks.

    Args:
        volumes: All volumes.
        roots: For each mounted volume's name its own root directory on the host.
    """
    for volume in volumes:
        if volume.file_system != "ntfs" or volume.name not in roots:
            continue
        try:
            hive = _hive(roots[volume.name], "system")
            if hive is None:
                continue
            found = _by_devices(hive.values("MountedDevices"), volumes)
        except (HiveError, struct.error) as error:
            log.warning("the registry does not tell drive letters", volume=volume.name, why=str(error))
            continue
        return {name: letter for name, letter in found.items() if name in roots}
    return {}


def read_product_name(root: Path) -> str:
    """Returns a Windows system's name, such as `Windows Server 2022 Standard`; empty when it is not told. Blocks."""
    try:
        hive = _hive(root, "software")
        raw = hive.values("Microsoft\\Windows NT\\CurrentVersion").get("ProductName", b"") if hive else b""
    except (HiveError, struct.error):
        return ""
    name = raw.decode("utf-16-le", "replace").partition("\0")[0]
    return "".join(character for character in name if character.isprintable())[:200]


def _by_devices(devices: Mapping[str, bytes], volumes: Sequence[Volume]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, data in devices.items():
        letter = _LETTER.fullmatch(name)
        if letter is None:
            continue
        for volume in volumes:
            if _is_meant(data, volume):
                found.setdefault(volume.name, letter.group(1).upper())
    return found


def _is_meant(data: bytes, volume: Volume) -> bool:
    if data.startswith(_GPT) and len(data) == len(_GPT) + 16:
        return volume.part_uuid.lower() == str(uuid.UUID(bytes_le=data[len(_GPT) :]))
    if len(data) == 12:
        signature, offset = struct.unpack("<IQ", data)
        return volume.part_uuid.startswith(f"{signature:08x}-") and volume.offset_bytes == offset
    return False


def _hive(root: Path, name: str) -> Hive | None:
    """Reads a hive, whose path Windows wrote in any case; None when there is none."""
    parts: list[bytes] = []
    for wanted in (*_CONFIG, name):
        try:
            names = names_in(root, GuestPath(tuple(parts)))
        except (FileMissing, FileUnreadable, NotADirectory):
            return None
        match = next((each for each in names if each.decode("utf-8", "replace").lower() == wanted), None)
        if match is None:
            return None
        parts.append(match)
    content = read_file(root, GuestPath(tuple(parts)), MAX_BYTES)
    return Hive(content) if content is not None else None
