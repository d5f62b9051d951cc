"""Where a file lies on a disk: what the micro-VM prints is read right, checked, and never believed beyond the disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense_restore.guestfs_blocks import BlockMaps, Extent, Layout, Segment, parse_extents, parse_mapper

TABLE = b"""Filesystem type is: ef53
File size of /sysroot/a b is 20000 (40 blocks of 512 bytes)
 ext:     logical_offset:        physical_offset: length:   expected: flags:
   0:        0..       7:        100..       107:      8:
   1:       16..      23:        200..       207:      8:        116:
   2:       24..      31:        300..       307:      8:        208: unwritten
   3:       32..      39:        400..       407:      8:        308: last,eof
/sysroot/a b: 4 extents found
"""


class FakeCalls:
    """Answers as a micro-VM whose file system says that the file is so."""

    def __init__(self, table: bytes, content: bytes) -> None:
        self.table = table
        self.content = content
        self.commands: list[bytes] = []

    def run(self, command: bytes) -> bytes:
        self.commands.append(command)
        return self.table

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(300 << 10))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def content_of(image: int, first: int = 0) -> bytes:
    """The file of the table, on a volume that begins so far on the disk."""
    parts = [os.pread(image, 4096, first + place * 512) for place in (100, 200, 400)]
    return (parts[0] + bytes(4096) + parts[1] + bytes(4096) + parts[2])[:20_000]


def test_a_table_is_read_and_what_was_never_written_is_a_hole() -> None:
    assert parse_extents(TABLE) == [
        Extent(0, 4096, 51_200),
        Extent(8192, 12_288, 102_400),
        Extent(16_384, 20_480, 204_800),
    ]


@pytest.mark.parametrize("flags", [b"last,inline,not_aligned,eof", b"last,encoded,eof", b"last,delalloc", b"last,new"])
def test_what_is_not_plain_data_has_no_place(flags: bytes) -> None:
    extents = parse_extents(TABLE.replace(b"last,eof", flags))
    assert extents is not None
    assert [extent.place for extent in extents] == [51_200, 102_400, None]


def test_what_is_not_on_the_disk_yet_is_data_all_the_same() -> None:
    line = b"   0:  16..  23:          0..         0:      0:             last,unknown_loc,delalloc"
    assert parse_extents(b"Filesystem type is: ef53\n" + line + b"\n/sysroot/x: 1 extent found\n") == [
        Extent(8192, 12_288, None)
    ]


@pytest.mark.parametrize(
    "text",
    [b"", b"FIBMAP: Invalid argument", TABLE[:-30], TABLE.replace(b"16..      23", b" 4..      11")],
    ids=["nothing", "an error", "cut off", "overlapping"],
)
def test_anything_else_is_no_table(text: bytes) -> None:
    assert parse_extents(text) is None


def test_a_file_without_data_is_one_hole() -> None:
    assert parse_extents(b"Filesystem type is: ef53\n/sysroot/x: 0 extents found\n") == []
    layout = Layout(5000, [])
    assert (layout.seek(0, os.SEEK_DATA), layout.seek(7, os.SEEK_HOLE)) == (None, 7)


def test_ranges_are_read_from_the_disk_with_holes_as_zeroes(image: int) -> None:
    expected = content_of(image, 1024)
    calls = FakeCalls(TABLE, expected)
    layout = BlockMaps(calls, {}).layout(b"/a b", 20_000, [Segment(0, 290 << 10, image, 1024)])  # type: ignore[arg-type]
    assert layout is not None
    assert layout.is_readable
    assert calls.commands == [b"filefrag -v -b512 -- '/sysroot/a b'"]
    for start, end in ((0, 20_000), (4095, 4097), (5000, 6000), (12_000, 17_000), (19_999, 20_000)):
        assert b"".join(layout.read(start, end)) == expected[start:end], (start, end)
    assert [layout.seek(offset, os.SEEK_DATA) for offset in (0, 4096, 12_288, 19_999)] == [0, 8192, 16_384, 19_999]
    assert [layout.seek(offset, os.SEEK_HOLE) for offset in (0, 4096, 8192, 16_384)] == [4096, 4096, 12_288, 20_000]


def test_a_volume_in_pieces_on_several_disks_is_followed(image: int) -> None:
    expected = content_of(image)
    pieces = [
        Segment(0, 52_000, image, 0),
        Segment(52_000, 50_400, image, 52_000),
        Segment(102_400, 1 << 20, image, 102_400),
    ]
    assert b"".join(Layout(20_000, parse_extents(TABLE) or [], pieces).read(0, 20_000)) == expected


def test_places_that_do_not_hold_the_file_are_not_believed(image: int) -> None:
    calls = FakeCalls(TABLE, bytes(20_000))
    layout = BlockMaps(calls, {}).layout(b"/a b", 20_000, [Segment(0, 290 << 10, image, 0)])  # type: ignore[arg-type]
    assert layout is not None
    assert not layout.is_readable
    assert layout.seek(4096, os.SEEK_DATA) == 8192  # its holes are


def test_a_place_outside_of_the_volume_is_an_error(image: int) -> None:
    layout = Layout(20_000, parse_extents(TABLE) or [], [Segment(0, 60_000, image, 0)])
    with pytest.raises(OSError, match="not on its volume"):
        layout.read(16_384, 20_000)


def test_names_cannot_leave_their_quotes() -> None:
    calls = FakeCalls(b"", b"")
    BlockMaps(calls, {}).layout(b"/it's $(x)\xff\n", 5, [])  # type: ignore[arg-type]
    assert calls.commands == [b"filefrag -v -b512 -- '/sysroot/it'\"'\"'s $(x)\xff\n'"]


def test_a_logical_volume_lies_where_the_mapper_says() -> None:
    table = "vg0-root: 0 100 linear 8:0 2048\nvg0-root: 100 60 linear 8:17 0\nvg0-raid: 0 8 raid1 core\n"
    table += "vg0-far: 0 8 linear 253:1 0\n"
    found = parse_mapper(table, {"8:0": (5, 0), "8:17": (6, 1 << 20)})
    assert found == {"vg0-root": [Segment(0, 51_200, 5, 1 << 20), Segment(51_200, 30_720, 6, 1 << 20)]}


def test_a_volumes_name_is_spelt_as_the_mapper_does() -> None:
    said = b"my--vg-root: 0 100 linear 8:0 2048\n\nsda 8:0 0\nsda1 8:1 2048\nloop0 7:0 0\n"
    maps = BlockMaps(FakeCalls(said, b""), {"sda": 5})  # type: ignore[arg-type]
    assert maps.segments_of("/dev/my-vg/root") == [Segment(0, 51_200, 5, 1 << 20)]
    assert maps.segments_of("/dev/md127") == []
