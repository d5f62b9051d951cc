"""Where a file's bytes lie on the disks of its restore point, so that they are read there and not through the micro-VM.

The micro-VM's kernel is asked (FIEMAP, by filefrag); what it tells is only ever used as places on the point's own
disks, so a guest that makes it lie reads nothing but itself. ext2-4 and XFS on a partition, a whole disk or a plain
logical volume are mapped. Btrfs tells its holes, but not where the data is; the other file systems tell nothing.
"""

from __future__ import annotations

import bisect
import errno
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sendense_restore.guestfs_calls import GuestCalls

MAPPED = frozenset({"ext2", "ext3", "ext4", "xfs"})
HOLES_ONLY = frozenset({"btrfs"})

_SECTOR = 512
_SAMPLE = 4096
_HARMLESS = frozenset({"last", "eof", "merged", "shared", "unwritten"})
_LINE = re.compile(rb"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.\s*(\d+):\s*(\d+):(?:\s*\d+:)?\s*(\S*)\s*")
_END = re.compile(rb".*: \d+ extents? found", re.DOTALL)
_MAPPER = re.compile(r"(\S+): (\d+) (\d+) (\S+) ?(.*)")
_BLOCK_DEVICES = "for d in /sys/class/block/*; do read n < $d/dev; s=0; test -r $d/start && read s < $d/start; "
_BLOCK_DEVICES += 'echo "${d##*/} $n $s"; done'


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece `[start, end)` of a file that is not a hole.

    Attributes:
        start: First byte of the file.
        end: The byte after its last.
        place: Its first byte on the volume; None where that is not told.
    """

    start: int
    end: int
    place: int | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a volume, from byte `start` on, that lies on a disk.

    Attributes:
        start: First byte of the volume.
        length: Bytes.
        image: Descriptor of the disk's image.
        offset: First byte of the image.
    """

    start: int
    length: int
    image: int
    offset: int


class Layout:
    """Where data and holes of one file are, and its content where that can be read from the disks.

    Args:
        size: Of the file, in bytes.
        extents: In order, not overlapping.
        segments: Of its volume, in order; none when the places are not known.
    """

    def __init__(self, size: int, extents: Sequence[Extent], segments: Sequence[Segment] = ()) -> None:
        self._size = size
        self._extents = [Extent(e.start, min(e.end, size), e.place) for e in extents if e.start < size]
        self._starts = [extent.start for extent in self._extents]
        self._segments = segments
        self._segment_starts = [segment.start for segment in segments]

    @property
    def is_readable(self) -> bool:
        """Whether `read` can be used."""
        return bool(self._segments)

    @property
    def samples(self) -> list[tuple[int, int]]:
        """Offset and length of pieces of data by which the places can be checked: the first and the last."""
        ends = [self._extents[0], self._extents[-1]] if self._extents else []
        return [(max(e.start, e.end - _SAMPLE), min(_SAMPLE, e.end - e.start)) for e in ends if e.place is not None]

    def pieces(self, start: int, end: int) -> list[tuple[int, int, Extent | None]]:
        """Cuts a range into pieces, each within an extent, or in a hole (None)."""
        found: list[tuple[int, int, Extent | None]] = []
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while start < end:
            while index < len(self._extents) and self._extents[index].end <= start:
                index += 1
            extent = self._extents[index] if index < len(self._extents) else None
            if extent is None or extent.start >= end:
                found.append((start, end, None))
                break
            if extent.start > start:
                found.append((start, extent.start, None))
                start = extent.start
            stop = min(extent.end, end)
            found.append((start, stop, extent))
            start = stop
        return found

    def seek(self, offset: int, whence: int) -> int | None:
        """Returns the next data or hole from an offset on, as lseek(2) would; None where there is no more data."""
        for start, _, extent in self.pieces(offset, self._size):
            if (extent is not None) == (whence == os.SEEK_DATA):
                return start
        return None if whence == os.SEEK_DATA else self._size

    def read(self, start: int, end: int) -> list[bytes]:
        """Reads a range of the file from the disks.

        Raises:
            OSError: A disk cannot be read.
        """
        parts: list[bytes] = []
        for begin, stop, extent in self.pieces(start, end):
            if extent is None or extent.place is None:
                parts.append(bytes(stop - begin))
            else:
                place = extent.place + begin - extent.start
                parts += self._read_volume(place, stop - begin)
        return parts

    def _read_volume(self, place: int, length: int) -> list[bytes]:
        parts: list[bytes] = []
        while length:
            segment = self._segments[bisect.bisect_right(self._segment_starts, place) - 1]
            inside = place - segment.start
            size = min(length, segment.length - inside)
            part = os.pread(segment.image, size, segment.offset + inside) if size > 0 else b""
            if not part:
                raise OSError(errno.EIO, "a file's place is not on its volume")
            parts.append(part)
            place += len(part)
            length -= len(part)
        return parts


class BlockMaps:
    """Finds the layouts of one micro-VM's files.

    Args:
        calls: Asks the micro-VM.
        images: For each disk of the micro-VM, such as `sda`, a descriptor of its image.
    """

    def __init__(self, calls: GuestCalls, images: Mapping[str, int]) -> None:
        self._calls = calls
        self._images = images
        self._mapper: dict[str, list[Segment]] | None = None

    def segments_of(self, device: str) -> list[Segment]:
        """Returns the places of a logical volume such as `/dev/vg0/root`; none when it is more than pieces in a row."""
        if self._mapper is None:
            self._mapper = self._find_mapped()
        group, _, name = device.removeprefix("/dev/").partition("/")
        return self._mapper.get(f"{group.replace('-', '--')}-{name.replace('-', '--')}", [])

    def layout(self, path: bytes, size: int, segments: Sequence[Segment]) -> Layout | None:
        """Asks where a file lies.

        Args:
            path: Its path in the micro-VM.
            size: Bytes.
            segments: Of its volume; with none, only holes are found.

        Returns:
            None when the file system does not tell, or what it tells is not so.
        """
        try:
            said = self._calls.run(b"filefrag -v -b512 -- " + _quoted(b"/sysroot" + path))
        except OSError:
            return None
        extents = parse_extents(said)
        if extents is None:
            return None
        if not segments or any(extent.place is None for extent in extents):
            return Layout(size, extents)
        layout = Layout(size, extents, segments)
        return layout if self._is_so(path, layout) else Layout(size, extents)

    def _is_so(self, path: bytes, layout: Layout) -> bool:
        try:
            return all(
                b"".join(layout.read(offset, offset + length)) == self._calls.read(path, offset, length)
                for offset, length in layout.samples
            )
        except OSError:
            return False

    def _find_mapped(self) -> dict[str, list[Segment]]:
        try:
            said = self._calls.run(f"dmsetup table; echo; {_BLOCK_DEVICES}".encode()).decode("utf-8", "replace")
        except OSError:
            return {}
        table, _, devices = said.partition("\n\n")
        disks: dict[str, tuple[int, int]] = {}
        for line in devices.splitlines():
            name, number, start = line.split() if line.count(" ") == 2 else ("", "", "")
            disk = next((disk for disk in self._images if re.fullmatch(f"{disk}\\d*", name)), None)
            if disk is not None:
                disks[number] = (self._images[disk], int(start) * _SECTOR)
        return parse_mapper(table, disks)


def parse_extents(text: bytes) -> list[Extent] | None:
    """Reads filefrag's table in sectors; None when it is none. What is not plain data has no place."""
    if not _END.fullmatch(text.strip()):
        return None
    found: list[Extent] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        flags = set(match[6].decode().strip(",").split(",")) - {""}
        start, end, sector = int(match[1]), int(match[2]) + 1, int(match[3])
        # What is not on the disk yet is shown with a length of 0.
        is_plain = sector > 0 and int(match[5]) == end - start and not flags - _HARMLESS
        if "unwritten" in flags:  # room without content: a hole to its reader
            continue
        if found and start * _SECTOR < found[-1].end:
            return None
        found.append(Extent(start * _SECTOR, end * _SECTOR, sector * _SECTOR if is_plain else None))
    return found


def parse_mapper(table: str, disks: Mapping[str, tuple[int, int]]) -> dict[str, list[Segment]]:
    """Reads dmsetup's table: for each device that is made of pieces of disks, these pieces.

    Args:
        table: What `dmsetup table` printed.
        disks: For each block device's number, such as `8:1`, its image and its first byte there.
    """
    found: dict[str, list[Segment]] = {}
    others: set[str] = set()
    for line in table.splitlines():
        match = _MAPPER.fullmatch(line)
        if match is None:
            continue
        name, kind, (number, _, offset) = match[1], match[4], match[5].partition(" ")
        if kind != "linear" or number not in disks or not offset.isdecimal():
            others.add(name)
            continue
        image, first = disks[number]
        place = first + int(offset) * _SECTOR
        found.setdefault(name, []).append(Segment(int(match[2]) * _SECTOR, int(match[3]) * _SECTOR, image, place))
    return {name: segments for name, segments in found.items() if name not in others}


def _quoted(path: bytes) -> bytes:
    return os.fsencode(shlex.quote(os.fsdecode(path)))
