"""The kernel's FUSE protocol as bytes, as far as a read-only file system needs it (linux/fuse.h, version 7.31).

Spoken directly, not through libfuse: inode numbers, holes (LSEEK), whole directories with attributes (READDIRPLUS) and
long reads are then ours to answer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

MAJOR, MINOR = 7, 31
MIN_MINOR = 28
"""Linux 4.20: MAX_PAGES, without which a read is at most 128 KiB long."""
MOST_BYTES = 1 << 20
"""The longest read, and the longest answer."""
REQUEST_BYTES = 64 << 10
"""No request of a read-only file system is longer; the kernel wants room for 8 KiB at least."""
KEEP_CACHE = 1 << 1
CACHE_DIR = 1 << 3
FOR_EVER = 3600
"""Seconds for which the kernel may keep what it was told: what is shown never changes."""

_PAGE = 4096
_MAX_WRITE = 4096
_BLOCK = 512
_ASYNC_READ, _DO_READDIRPLUS, _PARALLEL_DIROPS, _MAX_PAGES, _CACHE_SYMLINKS = (1 << bit for bit in (0, 13, 18, 22, 23))
_WANTED = _ASYNC_READ | _DO_READDIRPLUS | _PARALLEL_DIROPS | _MAX_PAGES | _CACHE_SYMLINKS
_UNSIGNED = (1 << 64) - 1

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")
_READ_IN = struct.Struct("<QQI")
_LSEEK_IN = struct.Struct("<QQI")
_STATFS = struct.Struct("<5Q4I24x")
_FORGET_ONE = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_SIZE = struct.Struct("<II")


class Opcode(IntEnum):
    """What is asked; other numbers are answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its number, what is asked, of which node, and the rest of it."""

    unique: int
    opcode: int
    node_id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) tells of a file.

    Attributes:
        inode: Its number; equal for all names of one file, and for no two files.
        mode: Kind and permissions.
        size: Bytes.
        blocks: Of 512 bytes, which it takes.
        links: Names.
        uid: Owner.
        gid: Group.
        device: Of a device node.
        times_ns: When it was read, when its content was changed, when anything of it was, in ns since 1970.
    """

    inode: int
    mode: int
    size: int
    blocks: int
    links: int
    uid: int
    gid: int
    device: int
    times_ns: tuple[int, int, int]

    @property
    def may_have_holes(self) -> bool:
        """Whether it takes less room than it is long."""
        return self.blocks * _BLOCK < self.size

    def pack(self) -> bytes:
        """Returns a `fuse_attr`."""
        parts = [divmod(time, 1_000_000_000) for time in self.times_ns]
        seconds, rest = [second & _UNSIGNED for second, _ in parts], [ns for _, ns in parts]
        return _ATTR.pack(
            self.inode, self.size, self.blocks, *seconds, *rest,
            self.mode, self.links, self.uid, self.gid, self.device & 0xFFFFFFFF, _PAGE, 0,
        )  # fmt: skip


def parse_request(message: bytes) -> Request:
    """Reads what the kernel sent."""
    _, opcode, unique, node_id, *_ = _IN.unpack_from(message)
    return Request(unique, opcode, node_id, message[_IN.size :])


def answer_head(unique: int, length: int) -> bytes:
    """Returns what comes before an answer of so many bytes."""
    return _OUT.pack(_OUT.size + length, 0, unique)


def refusal(unique: int, error: int) -> bytes:
    """Returns a whole answer that says errno."""
    return _OUT.pack(_OUT.size, -error, unique)


def init_answer(body: bytes) -> bytes | None:
    """Returns the answer to INIT; None when the kernel is too old."""
    major, minor, read_ahead, offered = _INIT_IN.unpack_from(body)
    if (major, minor) < (MAJOR, MIN_MINOR):
        return None
    pages = MOST_BYTES // _PAGE
    return _INIT_OUT.pack(MAJOR, MINOR, read_ahead, offered & _WANTED, 16, 12, _MAX_WRITE, 1, pages, 0, 0)


def entry(node_id: int, attributes: Attributes | None) -> bytes:
    """Returns a `fuse_entry_out`; one without attributes tells nothing but a name in a directory."""
    if attributes is None:
        return bytes(_ENTRY.size + _ATTR.size)
    return _ENTRY.pack(node_id, 0, FOR_EVER, FOR_EVER, 0, 0) + attributes.pack()


def attributes_answer(attributes: Attributes) -> bytes:
    """Returns a `fuse_attr_out`."""
    return _ATTR_OUT.pack(FOR_EVER, 0, 0) + attributes.pack()


def open_answer(handle: int, flags: int) -> bytes:
    """Returns a `fuse_open_out`."""
    return _OPEN_OUT.pack(handle, flags, 0)


def directory_entry(inode: int, next_offset: int, kind: int, name: bytes) -> bytes:
    """Returns a `fuse_dirent`, padded; `kind` is that of readdir(3), such as 8 for a file."""
    raw = _DIRENT.pack(inode, next_offset, len(name), kind) + name
    return raw + bytes(-len(raw) % 8)


def attribute_answer(value: bytes, room: int) -> bytes | None:
    """Returns the answer to a question for extended attributes; None when there is too little room for it."""
    if not room:
        return _SIZE.pack(len(value), 0)
    return value if len(value) <= room else None


def statfs_answer(facts: Mapping[str, int]) -> bytes:
    """Returns a `fuse_statfs_out` of what statvfs(3) calls so."""
    counts = (facts[name] for name in ("blocks", "bfree", "bavail", "files", "ffree"))
    return _STATFS.pack(*(count & _UNSIGNED for count in counts), facts["bsize"], facts["namemax"], facts["frsize"], 0)


def number_answer(number: int) -> bytes:
    """Returns a `fuse_lseek_out`."""
    return _NUMBER.pack(number)


def read_fields(body: bytes) -> tuple[int, int, int]:
    """Returns handle, offset and size of READ and READDIRPLUS."""
    handle, offset, size = _READ_IN.unpack_from(body)
    return handle, offset, size


def seek_fields(body: bytes) -> tuple[int, int, int]:
    """Returns handle, offset and whence."""
    handle, offset, whence = _LSEEK_IN.unpack_from(body)
    return handle, offset, whence


def handle_field(body: bytes) -> int:
    """Returns the handle that RELEASE and RELEASEDIR name, or the count of FORGET."""
    return int(_NUMBER.unpack_from(body)[0])


def attribute_fields(body: bytes) -> tuple[int, bytes]:
    """Returns room and name of GETXATTR; the name is empty for LISTXATTR."""
    room, _ = _SIZE.unpack_from(body)
    return room, name_field(body[_SIZE.size :])


def name_field(body: bytes) -> bytes:
    """Returns a name that ends with NUL."""
    return body.partition(b"\0")[0]


def forgotten(body: bytes) -> list[tuple[int, int]]:
    """Returns node and count for each of a BATCH_FORGET."""
    count, _ = _SIZE.unpack_from(body)
    return [_FORGET_ONE.unpack_from(body, _SIZE.size + index * _FORGET_ONE.size) for index in range(count)]
