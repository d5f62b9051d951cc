"""Windows drives by letter: the registry tells them, and a damaged one tells nothing and breaks nothing."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path

import pytest
from restore_hives import build_hive

from sendense_restore.registry import Hive, HiveError
from sendense_restore.volume import Volume
from sendense_restore.windows import drive_letters, read_product_name

GUID = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
VOLUMES = [
    Volume(0, 1, 1 << 20, 100 << 20, file_system="ntfs", part_uuid="cafebabe-01"),
    Volume(0, 2, 101 << 20, 100 << 20, file_system="ntfs", part_uuid="cafebabe-02"),
    Volume(1, 1, 1 << 20, 100 << 20, file_system="ntfs", part_uuid=str(GUID)),
]
SYSTEM = {
    "MountedDevices": {
        "\\DosDevices\\C:": struct.pack("<IQ", 0xCAFEBABE, 101 << 20),
        "\\DosDevices\\e:": b"DMIO:ID:" + GUID.bytes_le,
        "\\DosDevices\\A:": "\\??\\FDC".encode("utf-16-le"),
        "\\??\\Volume{1}": struct.pack("<IQ", 0xCAFEBABE, 1 << 20),
    }
}
SOFTWARE = {"Microsoft": {"Windows NT": {"CurrentVersion": {"ProductName": "Windows 11\0".encode("utf-16-le")}}}}


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    found = {volume.name: tmp_path / volume.name for volume in VOLUMES}
    config = found["disk-0-part-2"] / "WINDOWS" / "System32" / "config"
    for path in found.values():
        path.mkdir()
    config.mkdir(parents=True)
    (config / "SYSTEM").write_bytes(build_hive(SYSTEM))
    (config / "SOFTWARE").write_bytes(build_hive(SOFTWARE, b"lf"))
    return found


def test_letters_are_those_of_the_registry(roots: dict[str, Path]) -> None:
    assert drive_letters(VOLUMES, roots) == {"disk-0-part-2": "C:", "disk-1-part-1": "E:"}
    assert read_product_name(roots["disk-0-part-2"]) == "Windows 11"


def test_a_volume_that_is_not_mounted_has_no_letter(roots: dict[str, Path]) -> None:
    del roots["disk-1-part-1"]
    assert drive_letters(VOLUMES, roots) == {"disk-0-part-2": "C:"}


@pytest.mark.parametrize("kind", [b"lf", b"lh", b"li"])
def test_keys_are_found_in_every_kind_of_list_in_either_case(kind: bytes) -> None:
    hive = Hive(build_hive({"Select": {}, **SYSTEM}, kind))
    assert len(hive.values("mounteddevices")) == 4
    with pytest.raises(HiveError, match="no key Missing"):
        hive.values("Missing")


def test_damaged_hives_tell_nothing_and_break_nothing(roots: dict[str, Path]) -> None:
    good = build_hive(SYSTEM)
    system = roots["disk-0-part-2"] / "WINDOWS" / "System32" / "config" / "SYSTEM"
    chosen = random.Random(1)
    for _ in range(300):
        bad = bytearray(good[: chosen.randrange(len(good))] if chosen.random() < 0.3 else good)
        for _ in range(chosen.randrange(1, 20)):
            if bad:
                bad[chosen.randrange(len(bad)) if chosen.random() < 0.5 else chosen.randrange(min(4300, len(bad)))] = (
                    chosen.randrange(256)
                )
        for place in range(4096, min(len(bad), 4096 + 600), 4):
            if chosen.random() < 0.02:
                bad[place : place + 4] = chosen.randbytes(4)
        system.write_bytes(bytes(bad))
        assert set(drive_letters(VOLUMES, roots).values()) <= {f"{chr(letter)}:" for letter in range(65, 91)}
