"""Hostile qcow2 headers are refused by name before qemu opens the file (fault matrix, rows 25 and 26)."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sendense_qemu.errors import HeaderError
from sendense_qemu.header import MAX_VIRTUAL_SIZE, check_chain, check_header, read_header

CLUSTER = 65536
FIELDS = {
    "magic": ("4s", b"QFI\xfb"),
    "version": ("I", 3),
    "backing_offset": ("Q", 0),
    "backing_length": ("I", 0),
    "cluster_bits": ("I", 16),
    "size": ("Q", 1 << 30),
    "crypt": ("I", 0),
    "l1_size": ("I", 2),
    "l1_offset": ("Q", 3 * CLUSTER),
    "refcount_offset": ("Q", CLUSTER),
    "refcount_clusters": ("I", 1),
    "snapshots": ("I", 0),
    "snapshots_offset": ("Q", 0),
    "incompatible": ("Q", 0),
    "compatible": ("Q", 0),
    "autoclear": ("Q", 0),
    "refcount_order": ("I", 4),
    "header_length": ("I", 112),
    "compression": ("Q", 0),
}
BACKING_FORMAT = 0xE2792ACA


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


def image(
    path: Path,
    *,
    backing: bytes | None = None,
    backing_format: bytes | None = b"qcow2",
    extensions: bytes = b"",
    file_size: int = 4 * CLUSTER,
    **fields: Any,
) -> Path:
    """Writes a file with a header as qemu writes it, but for the fields that are given."""
    values = {name: default for name, (_, default) in FIELDS.items()}
    tail = extensions
    if backing is not None:
        if backing_format is not None:
            tail += extension(BACKING_FORMAT, backing_format)
        tail += extension(0, b"")
        values |= {"backing_offset": 112 + len(tail), "backing_length": len(backing)}
        tail += backing
    values |= fields
    packed = struct.pack(">" + "".join(code for code, _ in FIELDS.values()), *values.values())
    content = (packed + tail).ljust(CLUSTER, b"\0")
    with path.open("wb") as file:
        file.write(content)
        file.truncate(file_size)
    return path


def test_a_header_as_we_write_it_is_read(tmp_path: Path) -> None:
    header = check_header(image(tmp_path / "full.qcow2"), backing_name=None)
    assert (header.virtual_size, header.cluster_size, header.backing_name) == (1 << 30, CLUSTER, None)
    child = check_header(image(tmp_path / "incr.qcow2", backing=b"full.qcow2"), backing_name="full.qcow2")
    assert child.backing_name == "full.qcow2"


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"magic": b"QFI\xfa"}, "no qcow2 image"),
        ({"version": 2}, "version 2"),
        ({"version": 4}, "version 4"),
        ({"incompatible": 1}, "dirty"),
        ({"incompatible": 2}, "corrupt"),
        ({"incompatible": 4}, "data in another file"),
        ({"incompatible": 8}, "compression"),
        ({"incompatible": 16}, "extended L2"),
        ({"incompatible": 1 << 40}, "unknown incompatible"),
        ({"compatible": 2}, "unknown compatible"),
        ({"autoclear": 1}, "autoclear"),
        ({"autoclear": 2}, "autoclear"),
        ({"compression": 1 << 56}, "compressed"),
        ({"crypt": 2}, "encrypted"),
        ({"snapshots": 1}, "snapshots"),
        ({"cluster_bits": 8}, "clusters"),
        ({"cluster_bits": 22}, "clusters"),
        ({"cluster_bits": 63}, "clusters"),
        ({"refcount_order": 6}, "refcounts"),
        ({"header_length": 72}, "header is 72"),
        ({"header_length": 1 << 31}, "header is"),
        ({"size": 0}, "virtual size"),
        ({"size": 513}, "virtual size"),
        ({"size": MAX_VIRTUAL_SIZE + 512}, "virtual size"),
        ({"size": 1 << 63}, "virtual size"),
        ({"l1_size": 1}, "L1 table"),
        ({"l1_size": 6}, "L1 table"),
        ({"l1_size": (1 << 32) - 1}, "L1 table"),
        ({"l1_offset": 0}, "L1 table"),
        ({"l1_offset": 3 * CLUSTER + 8}, "L1 table"),
        ({"l1_offset": 4 * CLUSTER}, "behind the file's end"),
        ({"l1_offset": 1 << 62}, "behind the file's end"),
        ({"refcount_clusters": 0}, "refcount table"),
        ({"refcount_clusters": 1 << 20}, "refcount table"),
        ({"refcount_offset": 8 * CLUSTER}, "behind the file's end"),
        ({"backing_length": 5}, "backing file's name"),
        ({"backing_offset": 200, "backing_length": 5000}, "backing file's name"),
        ({"backing_offset": 8, "backing_length": 8}, ""),
    ],
)
def test_each_field_off_the_list_is_refused_and_named(tmp_path: Path, fields: dict[str, Any], finding: str) -> None:
    path = image(tmp_path / "hostile.qcow2", **fields)
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert finding in caught.value.finding
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "finding"),
    [(0x44415441, "external data file"), (0x23852875, "bitmaps"), (0x0537BE77, "encryption"), (0x12345678, "unknown")],
)
def test_header_extensions_off_the_list_are_refused(tmp_path: Path, kind: int, finding: str) -> None:
    path = image(tmp_path / "extended.qcow2", extensions=extension(kind, b"/etc/shadow"))
    with pytest.raises(HeaderError, match=finding):
        read_header(path)


@pytest.mark.parametrize("backing_format", [None, b"raw", b"luks", b"qcow2\0", b""])
def test_a_backing_file_without_the_format_qcow2_is_refused(tmp_path: Path, backing_format: bytes | None) -> None:
    path = image(tmp_path / "incr.qcow2", backing=b"full.qcow2", backing_format=backing_format)
    with pytest.raises(HeaderError, match="backing format"):
        read_header(path)


@pytest.mark.parametrize("name", ["/etc/shadow", "json:{}", "full2.qcow2", "../full.qcow2"])
def test_another_backing_name_than_the_expected_one_is_refused(tmp_path: Path, name: str) -> None:
    path = image(tmp_path / "incr.qcow2", backing=name.encode())
    with pytest.raises(HeaderError, match="expected 'full.qcow2'"):  # noqa: RUF043
        check_header(path, backing_name="full.qcow2")
    with pytest.raises(HeaderError, match="expected None"):
        check_header(path, backing_name=None)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"full\0.qcow2"])
def test_a_backing_name_that_is_no_text_is_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(HeaderError, match="UTF-8|NUL"):  # noqa: RUF043
        read_header(image(tmp_path / "incr.qcow2", backing=name))


def test_a_chain_is_followed_inside_the_roots_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "disk-0").mkdir(parents=True)
    outside.mkdir()
    image(outside / "secret.qcow2")
    image(root / "disk-0" / "full.qcow2")
    top = image(root / "disk-0" / "incr.qcow2", backing=b"full.qcow2")
    assert [header.path.name for header in check_chain(top, [root])] == ["incr.qcow2", "full.qcow2"]
    with pytest.raises(HeaderError, match="outside"):
        check_chain(top, [outside])
    for name in (b"../../outside/secret.qcow2", b"link.qcow2"):
        (root / "disk-0" / "link.qcow2").unlink(missing_ok=True)
        (root / "disk-0" / "link.qcow2").symlink_to(outside / "secret.qcow2")
        with pytest.raises(HeaderError, match="outside"):
            check_chain(image(root / "disk-0" / "evil.qcow2", backing=name), [root])
    with pytest.raises(HeaderError, match="not a relative file name"):
        check_chain(image(root / "disk-0" / "evil.qcow2", backing=str(outside / "secret.qcow2").encode()), [root])
    with pytest.raises(HeaderError, match="not a relative file name"):
        check_chain(image(root / "disk-0" / "evil.qcow2", backing=b"json:{}"), [root])


def test_a_missing_parent_a_cycle_and_endless_chains_are_refused(tmp_path: Path) -> None:
    lonely = image(tmp_path / "lonely.qcow2", backing=b"gone.qcow2")
    with pytest.raises(HeaderError, match="missing") as caught:
        check_chain(lonely, [tmp_path])
    assert caught.value.path == lonely
    image(tmp_path / "a.qcow2", backing=b"b.qcow2")
    image(tmp_path / "b.qcow2", backing=b"a.qcow2")
    with pytest.raises(HeaderError, match="leads back"):
        check_chain(tmp_path / "a.qcow2", [tmp_path])
    with pytest.raises(HeaderError, match="more than 1 layers"):
        check_chain(tmp_path / "a.qcow2", [tmp_path], max_depth=1)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(HeaderError, match="no regular file"):
        read_header(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(image(tmp_path / "full.qcow2"))
    with pytest.raises(HeaderError, match="symbolic link"):
        read_header(tmp_path / "link")
    with pytest.raises(HeaderError, match="no regular file"):
        read_header(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damaged_header_is_read_or_refused_but_nothing_else(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = image(tmp_path / "fuzzed.qcow2", backing=b"full.qcow2")
    content = bytearray(path.read_bytes()[:CLUSTER])
    for offset, value in changes:
        content[offset] = value
    with path.open("r+b") as file:
        file.write(content)
    try:
        header = read_header(path)
    except HeaderError:
        return
    assert 0 < header.virtual_size <= MAX_VIRTUAL_SIZE
    assert header.backing_name is not None
    assert "\0" not in header.backing_name


@given(content=st.binary(max_size=600))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(content)
    with pytest.raises(HeaderError):
        read_header(path)
