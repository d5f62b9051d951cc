"""A layer can be proved against its journal with nothing of ours: docs/repository-format.md, qemu-img and BLAKE3.

The reader below was written from that page alone. It must accept what the engine and the journal made, and must see any
byte of the layer or of the journal that was changed.
"""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3
from blockio_disks import content, make_qcow2, write_sparse
from blockio_servers import NbdServers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sendense_blockio.engine import CopyOptions, copy
from sendense_blockio.extents import Extent, areas_digest
from sendense_blockio.journal import JournalHeader, JournalWriter

KIB = 1024
SIZE = 2 * 1024 * KIB
AREAS = [Extent(0, 300 * KIB), Extent(512 * KIB, 600 * KIB), Extent(SIZE - 128 * KIB, 128 * KIB)]


class NotProved(Exception):
    """The journal is not as the page says, or the disk is not what the journal says."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise NotProved(what)


def proof(journal: bytes, disk: bytes) -> int:
    """Checks a disk's bytes against a sealed layer's journal; returns how many bytes are proved."""
    require(journal[:8] == b"SNDSJRNL", "magic")
    (length,) = struct.unpack_from("<I", journal, 8)
    at = 12 + length
    before = journal[at : at + 32]
    require(blake3(journal[:at]).digest() == before, "header checksum")
    require(json.loads(journal[12:at])["format"] == 1, "format")
    at += 32
    expected, proved = 1, 0
    while at < len(journal):
        head = journal[at : at + 16]
        require(len(head) == 16, "a batch is unfinished")
        magic, sequence, length = struct.unpack("<4sQI", head)
        check = journal[at + 16 : at + 24]
        require(magic == b"BTCH" and blake3(before + head).digest()[:8] == check, "head of a batch")
        require(sequence == expected, "sequence")
        payload = journal[at + 24 : at + 24 + length]
        checksum = journal[at + 24 + length : at + 56 + length]
        require(blake3(before + head + check + payload).digest() == checksum, "checksum of a batch")
        proved += proved_entries(payload, disk)
        before, expected, at = checksum, expected + 1, at + 56 + length
    return proved


def proved_entries(payload: bytes, disk: bytes) -> int:
    at = proved = 0
    while at < len(payload):
        offset, length, kind = struct.unpack_from("<QQB", payload, at)
        at += 17
        data = disk[offset : offset + length]
        if kind == 0:
            require(not any(data), f"zeroes at {offset}")
        else:
            require(blake3(data).digest() == payload[at : at + 32], f"data at {offset}")
            at += 32
        proved += length
    return proved


@pytest.fixture
def layer(nbd_servers: NbdServers, tmp_path: Path) -> tuple[bytes, bytes]:
    """An increment over a full of other data: its journal and what it reads as."""
    source_file, parent, overlay = (nbd_servers.directory / name for name in ("src", "parent", "overlay"))
    write_sparse(source_file, content(1, SIZE, [(100 * KIB, 64 * KIB), (600 * KIB, 256 * KIB)]))
    parent.write_bytes(content(2, SIZE))
    make_qcow2(overlay, SIZE, parent)
    source, _ = nbd_servers.nbdkit("file", str(source_file))
    target = nbd_servers.qemu_nbd(overlay, "qcow2")
    header = JournalHeader("layer-1", 1, "52 de c0/7", areas_digest(AREAS, SIZE), SIZE)
    options = CopyOptions(chunk_size=64 * KIB, batch_bytes=256 * KIB)
    with JournalWriter.create(tmp_path / "journal", header) as journal:
        copy(source, target, AREAS, options, lambda batch: journal.append_batch(batch.sequence, batch.entries) and None)
    nbd_servers.end_all()
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(overlay), str(raw)], check=True)
    return (tmp_path / "journal").read_bytes(), raw.read_bytes()


def test_a_layer_is_proved_from_the_page_alone(layer: tuple[bytes, bytes]) -> None:
    journal, disk = layer
    assert proof(journal, disk) == sum(area.length for area in AREAS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(min_value=0), bit=st.integers(0, 7), in_journal=st.booleans())
def test_every_flipped_bit_of_layer_or_journal_is_seen(
    layer: tuple[bytes, bytes], place: int, bit: int, in_journal: bool
) -> None:
    journal, disk = bytearray(layer[0]), bytearray(layer[1])
    if in_journal:
        journal[place % len(journal)] ^= 1 << bit
    else:
        area = AREAS[place % len(AREAS)]
        disk[area.offset + place % area.length] ^= 1 << bit
    with pytest.raises(NotProved):
        proof(bytes(journal), bytes(disk))
