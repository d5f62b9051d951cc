"""The https reader: which extent it reads, what the probe refuses, what is visible of its command (cbt-facts 16)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sendense_agent.errors import ReaderUnsuitable
from sendense_agent.model import Disk
from sendense_agent.readers.https import FolderAccess, _judge, describe_https, extent_url
from sendense_agent.readers.nbdkit import _command

ACCESS = FolderAccess("vc.example", 443, "user@vsphere.local", "canary-password", "PEM", "folder/DC 1")
DISK = Disk(2000, "u/2000", "Hard disk 1", 1 << 30, "[my ds] web #1/web #1_2.vmdk", "", "")
RANGE = f"bytes 0-511/{1 << 30}"


def test_the_extent_of_the_snapshots_backing_is_named() -> None:
    assert extent_url(ACCESS, DISK) == "/folder/web%20%231/web%20%231_2-flat.vmdk?dcPath=folder%2FDC%201&dsName=my%20ds"


def test_a_delta_and_other_backings_are_refused() -> None:
    with pytest.raises(ReaderUnsuitable, match="itself a delta"):
        extent_url(ACCESS, replace(DISK, is_delta=True))
    with pytest.raises(ReaderUnsuitable, match="no VMDK"):
        extent_url(ACCESS, replace(DISK, file_name="/dev/disk"))


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
        _judge(DISK, status, content_range, body)


def test_the_probe_takes_one_sector_of_the_right_size() -> None:
    _judge(DISK, 206, RANGE, bytes(512))


def test_secrets_are_in_files_and_not_in_the_command(tmp_path: Path) -> None:
    description = describe_https(ACCESS, DISK, 4)
    command = _command(description, tmp_path, tmp_path / "s.sock")
    assert "canary-password" not in " ".join(command) + repr(description)
    assert (tmp_path / "password").read_text() == "canary-password"
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert f"password=+{tmp_path / 'password'}" in command
    assert "--exit-with-parent" in command
    assert "--readonly" in command
