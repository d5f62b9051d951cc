"""A directory as a ZIP stream, in bounded memory however much it holds (APPNOTE 6.3, ZIP64 throughout).

Written to no seekable place: each file is followed by a data descriptor, and the central directory, which must come
last, waits in an unlinked temporary file. Names are the guest's bytes, marked as UTF-8 where they are; modes, owners,
times and symbolic links are kept (the fields of Info-ZIP). A ZIP knows no devices, FIFOs and sockets, no hard links, no
xattrs and no holes: they are left out, copied, dropped and written as zeroes. Who needs them takes a tar.

Blocks: its chunks are made in threads.
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.walk import Walk

_CHUNK = 512 << 10
_VERSION = 45  # ZIP64
_MADE_BY_UNIX = 3 << 8
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11
_STORED, _DEFLATED = 0, 8
_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_DATA_DESCRIPTOR = struct.Struct("<IIQQ")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_IN_ZIP64 = 0xFFFFFFFF
_DOS_YEARS = range(1980, 2108)
_SECOND_NS = 1_000_000_000
_MAX_NAME = 65_000


class ZipError(Exception):
    """Something below the directory could not be read, or the temporary file written: the stream is not whole."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    mode: int
    uid: int
    gid: int
    seconds: int


class ZipStream:
    """Makes one archive; iterate `chunks` to its end.

    Args:
        directory: Descriptor of the directory; stays the caller's.
        temporary: Directory for the central directory until it is sent.
    """

    def __init__(self, directory: int, temporary: Path) -> None:
        self._directory = directory
        self._temporary = temporary
        self._position = 0
        self._count = 0

    def chunks(self) -> Generator[bytes, None, None]:
        """Yields the archive.

        Raises:
            ZipError: It cannot be completed.
        """
        try:
            with tempfile.TemporaryFile(dir=self._temporary) as central:
                below = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
                with Walk(below) as walk:
                    for step in walk:
                        for chunk, record in self._member(step.directory, step.name, step.path):
                            self._position += len(chunk)
                            yield chunk
                            central.write(record)
                    if walk.skipped:
                        raise ZipError(f"{walk.skipped} directories cannot be read")
                start, size = self._position, central.tell()
                central.seek(0)
                while part := central.read(_CHUNK):
                    yield part
                yield self._end(start, size)
        except OSError as error:
            raise ZipError(f"{error.filename or ''}: {error.strerror}".lstrip(": ")) from error

    def _member(self, directory: int, name: bytes, path: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields a member's chunks, each with what it adds to the central directory: its record, with the last."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        member = _Member(path, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns // _SECOND_NS)
        if len(path) > _MAX_NAME:
            raise ZipError(f"a name of {len(path)} bytes is too long for a ZIP")
        if stat.S_ISDIR(status.st_mode):
            yield from self._small(member, path + b"/", b"")
        elif stat.S_ISLNK(status.st_mode):
            yield from self._small(member, path, os.readlink(name, dir_fd=directory))
        elif stat.S_ISREG(status.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            file = os.open(name, flags, dir_fd=directory)
            try:
                yield from self._file(member, file, status.st_size)
            finally:
                os.close(file)

    def _small(self, member: _Member, name: bytes, content: bytes) -> Iterator[tuple[bytes, bytes]]:
        offset, digest = self._position, zlib.crc32(content)
        head = self._local(member, name, _STORED)
        tail = _DATA_DESCRIPTOR.pack(0x08074B50, digest, len(content), len(content))
        yield head + content + tail, self._central(member, name, _STORED, digest, len(content), len(content), offset)

    def _file(self, member: _Member, file: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        offset, digest, length, packed = self._position, 0, 0, 0
        yield self._local(member, member.name, _DEFLATED), b""
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        while part := os.pread(file, _CHUNK, length):
            digest = zlib.crc32(part, digest)
            length += len(part)
            if chunk := packer.compress(part):
                packed += len(chunk)
                yield chunk, b""
        if length != size:
            raise ZipError(f"a file ends at {length} instead of {size}")
        chunk = packer.flush()
        packed += len(chunk)
        tail = _DATA_DESCRIPTOR.pack(0x08074B50, digest, packed, length)
        yield chunk + tail, self._central(member, member.name, _DEFLATED, digest, packed, length, offset)

    def _local(self, member: _Member, name: bytes, method: int) -> bytes:
        # The ZIP64 field says, before the sizes are known, that the data descriptor's are of 8 bytes.
        extra = struct.pack("<HHQQ", 1, 16, 0, 0) + _unix_fields(member)
        date, clock = _dos_time(member.seconds)
        head = _LOCAL.pack(
            0x04034B50, _VERSION, _flags(name), method, clock, date, 0, _IN_ZIP64, _IN_ZIP64, len(name), len(extra)
        )
        return head + name + extra

    def _central(
        self, member: _Member, name: bytes, method: int, digest: int, packed: int, size: int, offset: int
    ) -> bytes:
        self._count += 1
        extra = struct.pack("<HHQQQ", 1, 24, size, packed, offset) + _unix_fields(member)
        date, clock = _dos_time(member.seconds)
        record = _CENTRAL.pack(
            0x02014B50, _MADE_BY_UNIX | _VERSION, _VERSION, _flags(name), method, clock, date, digest,
            _IN_ZIP64, _IN_ZIP64, len(name), len(extra), 0, 0, 0, (member.mode & 0xFFFF) << 16, _IN_ZIP64,
        )  # fmt: skip
        return record + name + extra

    def _end(self, start: int, size: int) -> bytes:
        end64 = _END64.pack(
            0x06064B50, 44, _MADE_BY_UNIX | _VERSION, _VERSION, 0, 0, self._count, self._count, size, start
        )
        locator = _LOCATOR.pack(0x07064B50, 0, start + size, 1)
        return end64 + locator + _END.pack(0x06054B50, 0, 0, 0xFFFF, 0xFFFF, _IN_ZIP64, _IN_ZIP64, 0)


def _flags(name: bytes) -> int:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return _DESCRIPTOR
    return _DESCRIPTOR | _UTF8


def _unix_fields(member: _Member) -> bytes:
    """Info-ZIP's extended timestamp (0x5455) and owners (0x7875)."""
    seconds = min(max(member.seconds, -(1 << 31)), (1 << 31) - 1)
    return struct.pack("<HHBi", 0x5455, 5, 1, seconds) + struct.pack(
        "<HHBBIBI", 0x7875, 11, 1, 4, member.uid, 4, member.gid
    )


def _dos_time(seconds: int) -> tuple[int, int]:
    try:
        moment = time.gmtime(seconds)
    except (OverflowError, ValueError, OSError):
        moment = time.gmtime(0)
    if moment.tm_year not in _DOS_YEARS:
        return (1 << 5) | 1, 0  # 1 January 1980
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return date, moment.tm_hour << 11 | moment.tm_min << 5 | min(moment.tm_sec, 59) // 2
