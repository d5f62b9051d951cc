"""Which bytes an HTTP request gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_restore.ranges import Selection, Validators, attachment, select

CURRENT = Validators('"abc"', 1_700_000_000)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (200, 0, 1000)),
        ({"Range": "bytes=0-99"}, (206, 0, 100)),
        ({"Range": "bytes=990-2000"}, (206, 990, 10)),
        ({"Range": "bytes=-1"}, (206, 999, 1)),
        ({"Range": "bytes=-5000"}, (206, 0, 1000)),
        ({"Range": "bytes=1000-"}, (416, 0, 0)),
        ({"Range": "bytes=-0"}, (416, 0, 0)),
        ({"Range": "bytes=9-3"}, (200, 0, 1000)),
        ({"Range": "bytes=-"}, (200, 0, 1000)),
        ({"Range": "bytes=0-1,5-6"}, (200, 0, 1000)),
        ({"Range": "lines=0-1"}, (200, 0, 1000)),
        ({"Range": "bytes=0-9", "If-Range": '"abc"'}, (206, 0, 10)),
        ({"Range": "bytes=0-9", "If-Range": '"old"'}, (200, 0, 1000)),
        ({"Range": "bytes=0-9", "If-Range": CURRENT.last_modified}, (206, 0, 10)),
        ({"If-None-Match": 'W/"abc", "x"'}, (304, 0, 0)),
        ({"If-None-Match": '"x"', "If-Modified-Since": CURRENT.last_modified}, (200, 0, 1000)),
        ({"If-Modified-Since": CURRENT.last_modified}, (304, 0, 0)),
        ({"If-Modified-Since": "nonsense"}, (200, 0, 1000)),
        ({"If-Match": '"other"'}, (412, 0, 0)),
    ],
)
def test_headers_select_bytes(headers: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert select(headers, 1000, CURRENT) == Selection(*expected)


@given(st.text(alphabet="bytes=-,0123456789 ", max_size=30), st.integers(0, 3000))
def test_a_selection_never_leaves_the_file(value: str, size: int) -> None:
    chosen = select({"Range": value}, size, CURRENT)
    assert chosen.status in (200, 206, 416)
    assert 0 <= chosen.start <= chosen.start + chosen.length <= size
    assert chosen.status != 206 or chosen.length > 0


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a b.txt", 'attachment; filename="a b.txt"'),
        ("ä.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A4.txt"),
        ('a";x\r\nb: y', "attachment; filename=\"a_;x__b: y\"; filename*=UTF-8''a%22%3Bx%0D%0Ab%3A%20y"),
    ],
)
def test_a_file_name_cannot_break_out_of_its_header(name: str, header: str) -> None:
    assert attachment(name) == header
