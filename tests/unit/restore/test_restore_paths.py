"""Names survive a round trip; paths of requests are judged before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_restore.errors import FileMissing, FileUnreadable, InvalidPath, PathOutsideMount
from sendense_restore.names import escape, unescape
from sendense_restore.paths import GuestPath, located, parse_guest_path


@given(st.binary(min_size=1))
def test_every_name_survives_a_round_trip_as_text(name: bytes) -> None:
    text = escape(name)
    assert text.encode("utf-8")
    assert unescape(text) == name


@pytest.mark.parametrize(
    ("name", "text"), [(b"a b", "a b"), ("ä€".encode(), "ä€"), (b"\xff", r"\xff"), (b"\\xff", r"\\xff")]
)
def test_names_are_shown_as_the_contract_says(name: bytes, text: str) -> None:
    assert escape(name) == text


@pytest.mark.parametrize("text", ["\\", "\\x", "\\xg1", "a\\nb", "\\X41", "\\x4"])
def test_an_escape_that_listings_never_make_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="backslash"):
        unescape(text)
    with pytest.raises(InvalidPath):
        parse_guest_path("/" + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", GuestPath(())),
        ("/", GuestPath(())),
        ("//var/./www/", GuestPath((b"var", b"www"))),
        ("/a/../b", GuestPath((b"a", b"..", b"b"))),
        ("/disk-0:/x", GuestPath((b"disk-0:", b"x"))),
        ("disk-0-part-1:/etc", GuestPath((b"etc",), "disk-0-part-1")),
        ("disk-12:", GuestPath((), "disk-12")),
        (r"/caf\xe9", GuestPath((b"caf\xe9",))),
    ],
)
def test_paths_are_read(text: str, expected: GuestPath) -> None:
    assert parse_guest_path(text) == expected
    assert parse_guest_path(expected.display) == expected


@pytest.mark.parametrize("text", ["/..", "/a/../../b", "disk-0:/..", "/./..", r"/\x2e\x2e", r"/a\x2f..\x2f.."])
def test_what_leads_above_the_root_is_refused_however_it_is_written(text: str) -> None:
    with pytest.raises(PathOutsideMount):
        parse_guest_path(text)


@pytest.mark.parametrize("text", ["etc", "../etc", "disk-x:/etc", r"/a\x00b"])
def test_what_is_no_absolute_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidPath):
        parse_guest_path(text)


@given(st.lists(st.sampled_from(["..", "a", "link", "up", "abs", "."]), max_size=12))
def test_no_path_resolves_to_something_outside_the_root(parts: list[str]) -> None:
    root = _tree()
    try:
        path = parse_guest_path("/" + "/".join(parts))
    except PathOutsideMount:
        return
    try:
        with located(root, path) as (fd, _):
            assert Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(root)
    except (FileMissing, FileUnreadable):
        pass


_trees: list[Path] = []


def _tree() -> Path:
    return _trees[0]


@pytest.fixture(autouse=True, scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("tree")
    root = base / "root"
    (root / "a" / "a").mkdir(parents=True)
    (base / "secret").mkdir()
    (root / "link").symlink_to("a")
    for place in (root, root / "a", root / "a" / "a"):
        (place / "up").symlink_to("../../../../..")
        (place / "abs").symlink_to(base / "secret")
    _trees[:] = [root]


def test_a_magic_link_is_not_followed(tmp_path: Path) -> None:
    # A guest's tree cannot hold one, but its root could have /proc bound into it by mistake.
    fd = os.open("/proc/self", os.O_RDONLY)
    try:
        with pytest.raises(FileUnreadable), located(Path("/proc/self"), parse_guest_path("/root")):
            pass
    finally:
        os.close(fd)
