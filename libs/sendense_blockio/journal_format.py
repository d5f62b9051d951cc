"""The bytes of a journal file: its header and the frames of its batches. `journal` says what they mean."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from sendense_blockio.errors import JournalCorruptError, JournalVersionError

FORMAT_VERSION = 1
"""The version that this code writes, and the newest that it reads."""

CHECKSUM_BYTES = 32
"""Length of a frame's BLAKE3 checksum."""

MAX_PAYLOAD_BYTES = 3 * 1024 * 1024
"""Largest encoded batch: it must fit into one gRPC message of 4 MiB."""

_FILE_MAGIC = b"SNDSJRNL"
_FRAME_MAGIC = b"BTCH"
_HEADER_LENGTH = struct.Struct("<I")
_FRAME_HEAD = struct.Struct("<4sQI")
_HEAD_CHECK_BYTES = 8
_MAX_HEADER_BYTES = 64 * 1024

FRAME_HEAD_BYTES = _FRAME_HEAD.size + _HEAD_CHECK_BYTES
"""Length of a frame's head with its check."""


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """What a journal is bound to.

    Attributes:
        layer_id: the layer that it belongs to.
        attempt: the job's attempt that made the layer.
        change_id: the snapshot's change id of this disk; empty when VMware gave none.
        areas_digest: `extents.areas_digest` of what is to be copied.
        virtual_size: the disk's capacity in bytes.
    """

    layer_id: str
    attempt: int
    change_id: str
    areas_digest: str
    virtual_size: int


def encode_header(header: JournalHeader) -> bytes:
    """Returns the first bytes of a journal file."""
    body = json.dumps({"format": FORMAT_VERSION, **asdict(header)}, sort_keys=True, separators=(",", ":")).encode()
    head = _FILE_MAGIC + _HEADER_LENGTH.pack(len(body)) + body
    return head + blake3(head).digest()


def decode_header(path: Path, stream: BinaryIO) -> tuple[JournalHeader, int, bytes]:
    """Reads the header from the beginning of a stream.

    Returns:
        The header, the position after it, and its checksum, from which the frames' chain starts.

    Raises:
        JournalCorruptError: it is not as written.
        JournalVersionError: a newer version wrote it.
    """
    fixed = stream.read(len(_FILE_MAGIC) + _HEADER_LENGTH.size)
    if not fixed.startswith(_FILE_MAGIC) or len(fixed) < len(_FILE_MAGIC) + _HEADER_LENGTH.size:
        raise JournalCorruptError(path, 0, "it does not begin like a journal")
    (length,) = _HEADER_LENGTH.unpack_from(fixed, len(_FILE_MAGIC))
    if length > _MAX_HEADER_BYTES:
        raise JournalCorruptError(path, len(_FILE_MAGIC), f"the header cannot have {length} bytes")
    body = stream.read(length)
    checksum = stream.read(CHECKSUM_BYTES)
    if blake3(fixed + body).digest() != checksum:
        raise JournalCorruptError(path, 0, "the header's checksum is wrong")
    values = json.loads(body)
    version = values.pop("format")
    if version > FORMAT_VERSION:
        raise JournalVersionError(path, version, FORMAT_VERSION)
    return JournalHeader(**values), len(fixed) + length + CHECKSUM_BYTES, checksum


def _head_check(previous: bytes, head: bytes) -> bytes:
    return blake3(previous + head).digest()[:_HEAD_CHECK_BYTES]


def encode_frame(previous: bytes, sequence: int, payload: bytes) -> tuple[bytes, bytes]:
    """Returns a batch's frame and its checksum.

    Args:
        previous: the checksum of the frame before it, or the header's.
        sequence: the batch's number.
        payload: its encoded entries.
    """
    head = _FRAME_HEAD.pack(_FRAME_MAGIC, sequence, len(payload))
    head += _head_check(previous, head)
    checksum = blake3(previous + head + payload).digest()
    return head + payload + checksum, checksum


def parse_frame_head(path: Path, position: int, head: bytes, previous: bytes) -> tuple[int, int]:
    """Returns a frame's sequence and payload length.

    The head has a check of its own: a flipped bit in the length would else look like an unfinished frame, and
    good batches after it would be cut.

    Raises:
        JournalCorruptError: the head is not as written.
    """
    plain, check = head[: _FRAME_HEAD.size], head[_FRAME_HEAD.size :]
    magic, sequence, length = _FRAME_HEAD.unpack(plain)
    if magic != _FRAME_MAGIC or check != _head_check(previous, plain):
        raise JournalCorruptError(path, position, "the head of a batch is damaged")
    return sequence, length
