"""The https reader: which extent it reads, what the probe refuses, what is visible of its command (cbt-facts 16)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sendense_agent.certificate import Pin
from sendense_agent.errors import ReaderUnsuitable
from sendense_agent.model import Disk
from sendense_agent.readers.description import describe
from sendense_agent.readers.https import HTTPS, has_flat_extent, judge
from sendense_agent.readers.nbdkit import _command
from sendense_agent.readers.source import DiskSource, Place

DISK = Disk(2000, "u/2000", "Hard disk 1", 1 << 30, "[my ds] web #1/web #1_2.vmdk", "", "")
PLACE = Place(DISK, "vm-1", "uuid", "web", True, "snapshot-1", "folder/DC 1", "VMFS")
SOURCE = DiskSource(PLACE, "vc.example", 443, "user@vsphere.local", "canary-password", Pin("PEM", exact=False))
RANGE = f"bytes 0-511/{1 << 30}"


def on(disk: Disk = DISK, **place: object) -> DiskSource:
    return replace(SOURCE, place=replace(PLACE, disk=disk, **place))  # type: ignore[arg-type]


def test_the_extent_of_the_snapshots_backing_is_named() -> None:
    expected = "/folder/web%20%231/web%20%231_2-flat.vmdk?dcPath=folder%2FDC%201&dsName=my%20ds"
    assert SOURCE.flat_extent == expected
    assert describe(HTTPS, SOURCE).parameters["url"] == f"https://vc.example:443{expected}"


def test_a_plain_flat_disk_suits() -> None:
    has_flat_extent(SOURCE)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (on(replace(DISK, is_delta=True)), "itself a delta"),
        (on(replace(DISK, file_name="/dev/disk")), "no VMDK"),
        (on(replace(DISK, capacity_bytes=0)), "smaller than a sector"),
        (on(storage="vsan"), "on vSAN"),
        (on(storage="VVOL"), "on vVol"),
        (on(encrypted=True), "ciphertext"),
    ],
)
def test_what_has_no_flat_file_of_its_own_bytes_is_refused(source: DiskSource, problem: str) -> None:
    with pytest.raises(ReaderUnsuitable, match=problem):
        has_flat_extent(source)


@pytest.mark.parametrize(
    ("status", "content_range", "body", "problem"),
    [
        (200, "", bytes(512), "ignores Range"),
        (401, "", b"Log in first", "answers 401: Log in first"),
        (404, "", b"", "answers 404"),
        (500, "", b"locked", "answers 500: locked"),
        (206, "", bytes(512), "another range"),
        (206, f"bytes 512-1023/{1 << 30}", bytes(512), "another range"),
        (206, RANGE, bytes(100), "another range"),
        (206, f"bytes 0-511/{1 << 20}", bytes(512), "not a plain flat extent"),
    ],
)
def test_the_probe_says_why_an_extent_cannot_be_read(
    status: int, content_range: str, body: bytes, problem: str
) -> None:
    with pytest.raises(ReaderUnsuitable, match=problem):
        judge(DISK, status, content_range, body)


def test_the_probe_takes_one_sector_of_the_right_size() -> None:
    judge(DISK, 206, RANGE, bytes(512))


def test_secrets_are_in_files_and_not_in_the_command(tmp_path: Path) -> None:
    description = describe(HTTPS, SOURCE)
    command = _command(description, tmp_path, tmp_path / "s.sock")
    assert "canary-password" not in " ".join(command) + repr(description)
    assert (tmp_path / "password").read_text() == "canary-password"
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert f"password=+{tmp_path / 'password'}" in command
    assert "--exit-with-parent" in command
    assert "--readonly" in command
