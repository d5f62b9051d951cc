"""What the guest does: files on whichever disk its fstab names, repeatable changes, nothing by halves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError


@pytest.fixture(scope="module")
def moref(lab: LabClient) -> str:
    return str(lab.create_vm("guest", ["48M:ext4", "32M:ext4"], seed=5, small_files=60)["moref"])


def cat(lab: LabClient, moref: str, path: str, tmp_path: Path) -> bytes:
    output = tmp_path / "cat"
    lab.guest_cat(moref, path, output)
    return output.read_bytes()


def test_a_put_file_can_be_read_and_removed(lab: LabClient, moref: str, tmp_path: Path) -> None:
    local = tmp_path / "page"
    local.write_bytes(b"x" * 300_000)
    for path in ("/var/www/html/new/deep/page.html", "/data/put here/page"):
        assert lab.guest_put(moref, local, path)["bytes"] == 300_000
        assert cat(lab, moref, path, tmp_path) == local.read_bytes()
        assert lab.guest_rm(moref, path)["files"] == 1
        with pytest.raises(LabError) as missing:
            cat(lab, moref, path, tmp_path)
        assert missing.value.reason == "NOT_FOUND"


def test_a_file_lands_on_the_disk_that_fstab_names(lab: LabClient, moref: str, tmp_path: Path) -> None:
    local = tmp_path / "f"
    local.write_bytes(b"y" * 1_000_000)
    contents = []
    for number in range(2):
        if number:
            lab.guest_put(moref, local, "/data/f")
        for disk in range(2):
            lab.export(moref, disk, tmp_path / f"{number}-{disk}")
        contents.append([(tmp_path / f"{number}-{disk}").read_bytes() for disk in range(2)])
    assert contents[0][0] == contents[1][0]  # the root's disk was not touched
    assert contents[0][1] != contents[1][1]


def test_the_root_is_a_believable_linux(lab: LabClient, moref: str, tmp_path: Path) -> None:
    fstab = cat(lab, moref, "/etc/fstab", tmp_path).decode()
    assert [line.split()[1] for line in fstab.splitlines()] == ["/", "/data"]
    assert b"Debian" in cat(lab, moref, "/etc/os-release", tmp_path)
    assert cat(lab, moref, "/var/www/html/current", tmp_path).startswith(b"<?php")  # a link


@pytest.mark.parametrize("path", ["relative", "/no/such", "/etc", "/etc/fstab/x", "/../../etc/shadow"])
def test_paths_that_name_no_file_are_refused(lab: LabClient, moref: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(LabError) as refused:
        cat(lab, moref, path, tmp_path)
    assert refused.value.reason in ("NOT_FOUND", "INVALID_ARGUMENT")


def test_a_run_changes_about_the_share_and_leaves_sound_file_systems(
    lab: LabClient, moref: str, tmp_path: Path
) -> None:
    done = lab.guest_run(moref, share=0.2, seed=1)
    assert 0.19 <= done["share"] <= 0.22
    assert done["files_changed"] > 0
    for disk in range(2):
        raw = tmp_path / "raw"
        lab.export(moref, disk, raw)
        with raw.open("rb") as whole, (tmp_path / "part").open("wb") as part:
            whole.seek(1024 * 1024)
            part.write(whole.read(raw.stat().st_size - 2 * 1024 * 1024))
        subprocess.run(["e2fsck", "-fn", str(tmp_path / "part")], check=True, capture_output=True)


def test_the_same_seeds_give_the_same_content(lab: LabClient, tmp_path: Path) -> None:
    files = []
    for folder in ("one", "two"):
        vm = lab.create_vm("twin", ["16M:ext4"], seed=77, small_files=8, folder=folder)
        lab.guest_run(vm["moref"], share=0.3, seed=2)
        listing = tmp_path / folder
        lab.guest_cat(vm["moref"], "/srv/app03/part003/item-00003.dat", listing)
        files.append(listing.read_bytes())
    assert files[0] == files[1]
    with pytest.raises(LabError) as ambiguous:
        lab.guest_run("twin", share=0.1)
    assert ambiguous.value.reason == "AMBIGUOUS_NAME"
    assert "vm-" in ambiguous.value.message


def test_a_failed_operation_changes_nothing(lab: LabClient, moref: str, tmp_path: Path) -> None:
    before, after, huge = tmp_path / "before", tmp_path / "after", tmp_path / "huge"
    with huge.open("wb") as file:
        for _ in range(64):
            file.write(b"z" * 1024 * 1024)
    lab.export(moref, 1, before)
    with pytest.raises(LabError):
        lab.guest_put(moref, huge, "/data/too-big")  # no room left on the device
    lab.export(moref, 1, after)
    assert before.read_bytes() == after.read_bytes()


def test_bad_arguments_are_refused(lab: LabClient, moref: str) -> None:
    for call in (
        lambda: lab.guest_write(moref, 0, 48 * 1024**2, length=1),
        lambda: lab.guest_write(moref, 0, 0, length=0),
        lambda: lab.guest_write(moref, 7, 0, length=1),
        lambda: lab.guest_run(moref, share=0),
        lambda: lab.create_vm("guest", ["16M:ext4"]),
        lambda: lab.create_vm("a/b", ["16M:ext4"]),
        lambda: lab.create_vm("x", []),
        lambda: lab.set_page_areas(0),
        lambda: lab.delete_vm("nobody"),
    ):
        with pytest.raises(LabError) as refused:
            call()
        assert refused.value.reason in ("INVALID_ARGUMENT", "NOT_FOUND")
