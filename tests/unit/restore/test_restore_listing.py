"""Pages of directories: each entry once, in order, however large the directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sendense_restore.errors import InvalidPageToken
from sendense_restore.listing import SortedNames, list_directory
from sendense_restore.paths import GuestPath

ROOT = GuestPath(())


@pytest.mark.parametrize("window", [8, 40, 1000])
def test_pages_are_whole_and_ordered_for_every_window(tmp_path: Path, window: int) -> None:
    expected = sorted(f"f{n * 7919 % 251}".encode() for n in range(251))
    for name in expected:
        (tmp_path / os.fsdecode(name)).touch()
    names = SortedNames(window)
    found: list[bytes] = []
    token = ""
    while True:
        page = list_directory(names, tmp_path, ROOT, 7, token)
        found += [entry.name for entry in page.entries]
        if not page.next_token:
            break
        token = page.next_token
    assert found == expected


def test_a_page_of_long_link_targets_stays_below_what_a_gateway_takes(tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n:03}").symlink_to("x" * 4000)
    page = list_directory(SortedNames(), tmp_path, ROOT, 1000, "")
    assert 0 < sum(len(entry.link_target) for entry in page.entries) < 400_000
    assert page.next_token
    rest = list_directory(SortedNames(), tmp_path, ROOT, 1000, page.next_token)
    assert rest.entries[0].name == f"{len(page.entries):03}".encode()


@pytest.mark.parametrize("token", ["é", "====", "Lw==", "a"])
def test_a_made_up_token_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(InvalidPageToken):
        list_directory(SortedNames(), tmp_path, ROOT, 10, token)
