"""The vCenters' file: private, complete, and never quoted in an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sendense_agent.accounts import read_accounts
from sendense_agent.errors import VCenterFileInvalid

SECRET = "canary-password"
GOOD: dict[str, Any] = {
    "name": "lab",
    "host": "127.0.0.1",
    "username": "backup@vsphere.local",
    "password": SECRET,
    "sha256": "AA:" * 31 + "BB",
}


def write(path: Path, content: Any, mode: int = 0o600) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def test_accounts_are_read(tmp_path: Path) -> None:
    secret = write(tmp_path / "password", SECRET + "\n")
    second = {k: v for k, v in GOOD.items() if k != "password"} | {
        "name": "b",
        "password_file": str(secret),
        "port": 8443,
    }
    first, other = read_accounts(write(tmp_path / "vcenters.json", [GOOD, second]))
    assert (first.port, first.read_password(), first.fingerprint) == (443, SECRET, "aa" * 31 + "bb")
    assert (other.port, other.read_password()) == (8443, SECRET)
    assert SECRET not in repr(first) + str(first)


def test_no_file_is_no_account(tmp_path: Path) -> None:
    assert read_accounts(tmp_path / "none.json") == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(VCenterFileInvalid, match="others can read"):
        read_accounts(write(tmp_path / "vcenters.json", [GOOD], mode))


def test_a_password_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret = write(tmp_path / "password", SECRET, 0o644)
    entry = {k: v for k, v in GOOD.items() if k != "password"} | {"password_file": str(secret)}
    (account,) = read_accounts(write(tmp_path / "vcenters.json", [entry]))
    with pytest.raises(VCenterFileInvalid, match="others can read"):
        account.read_password()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        {"name": "lab"},
        [{**GOOD, "host": ""}],
        [{**GOOD, "port": 70000}],
        [{**GOOD, "password": ""}],
        [{**GOOD, "password": [SECRET]}],
        [{**GOOD, "sha256": ""}],
        [{**GOOD, "sha256": "abc"}],
        [GOOD, GOOD],
    ],
)
def test_malformed_files_are_refused_without_quoting_a_password(tmp_path: Path, content: Any) -> None:
    with pytest.raises(VCenterFileInvalid) as failed:
        read_accounts(write(tmp_path / "vcenters.json", content))
    chain: BaseException | None = failed.value
    while chain is not None:
        assert SECRET not in str(chain)
        chain = chain.__cause__
