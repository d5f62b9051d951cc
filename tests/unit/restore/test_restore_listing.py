"""Pages of directories: each entry once, in order, however large the directory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from sendense_restore.errors import InvalidPageToken
from sendense_restore.listing import Listings, Order, list_directory
from sendense_restore.paths import GuestPath

ROOT = GuestPath(())


@pytest.mark.parametrize("window", [8, 40, 1000])
def test_pages_are_whole_and_ordered_for_every_window(tmp_path: Path, window: int) -> None:
    expected = sorted(f"f{n * 7919 % 251}".encode() for n in range(251))
    for name in expected:
        (tmp_path / os.fsdecode(name)).touch()
    listings = Listings(window)
    found: list[bytes] = []
    token = ""
    while True:
        page = list_directory(listings, tmp_path, ROOT, Order(), 7, token)
        found += [entry.name for entry in page.entries]
        if not page.next_token:
            break
        token = page.next_token
    assert found == expected


def test_a_page_of_long_link_targets_stays_below_what_a_gateway_takes(tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n:03}").symlink_to("x" * 4000)
    page = list_directory(Listings(), tmp_path, ROOT, Order(), 1000, "")
    assert 0 < sum(len(entry.link_target) for entry in page.entries) < 400_000
    assert page.next_token
    rest = list_directory(Listings(), tmp_path, ROOT, Order(), 1000, page.next_token)
    assert rest.entries[0].name == f"{len(page.entries):03}".encode()


@pytest.mark.parametrize("token", ["é", "====", "Lw==", "a"])
def test_a_made_up_token_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(InvalidPageToken):
        list_directory(Listings(), tmp_path, ROOT, Order(), 10, token)


@pytest.mark.parametrize("window", [8, 1000])
@pytest.mark.parametrize("order_by", ["name", "-name", "size", "-size", "modified", "-modified"])
def test_every_order_covers_the_directory_exactly_once(tmp_path: Path, window: int, order_by: str) -> None:
    for n in range(120):
        path = tmp_path / (f"f{n:03}" + "x" * (n % 5) + ("\udcff" if n % 7 == 0 else ""))
        path.write_bytes(b"z" * (n * 37 % 50))
        os.utime(path, ns=(0, (n * 53 % 40 - 20) * 10**9))
    listings, found, token = Listings(window), [], ""
    while True:
        page = list_directory(listings, tmp_path, ROOT, Order.of(order_by, ""), 7, token)
        found += page.entries
        token = page.next_token
        if not token:
            break
    assert len({entry.name for entry in found}) == len(found) == 120
    field = order_by.removeprefix("-")
    values = [{"name": e.name, "size": e.size_bytes, "modified": e.modified_ns}[field] for e in found]
    assert values == sorted(values, reverse=order_by.startswith("-"))  # type: ignore[type-var]


def test_a_pattern_chooses_names(tmp_path: Path) -> None:
    for name in ("a.log", "b.log", "a.txt", "A.log"):
        (tmp_path / name).touch()
    page = list_directory(Listings(), tmp_path, ROOT, Order(pattern="?.log"), 0, "")
    assert [entry.name for entry in page.entries] == [b"A.log", b"a.log", b"b.log"]


@pytest.mark.timeout(1200)  # it takes minutes to make a million files
def test_a_million_entries_are_paged_in_bounded_memory(tmp_path: Path) -> None:
    """With SENDENSE_TEST_MILLION=1 a whole million; fewer otherwise, with a window as much smaller."""
    count, window = (1_000_000, 200_000) if os.environ.get("SENDENSE_TEST_MILLION") else (12_000, 2_400)
    for n in range(count):
        os.close(os.open(tmp_path / f"{n:07}", os.O_CREAT | os.O_WRONLY))
    listings, seen, token = Listings(window), 0, ""
    tracemalloc.start()
    try:
        while True:
            page = list_directory(listings, tmp_path, ROOT, Order(), 1000, token)
            assert page.entries[0].name == b"%07d" % seen
            seen += len(page.entries)
            token = page.next_token
            if not token:
                break
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == count
    assert peak < window * 400
