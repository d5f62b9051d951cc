"""The status file is read as it was written, and is never half a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sendense_exports.status import ExportStatus, Status, StatusUnreadableError, read_status, write_status


def some_status() -> Status:
    export = ExportStatus("serving", 512, "raw", False, "/srv/a", 2, "", "/c/a.conf", 1, "e1", warnings=("w",))
    return Status(7, 1, 2, 3, "/run/nbd.sock", {"a": export})


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", some_status())
    assert read_status(tmp_path / "status.json") == some_status()
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_fields_of_a_newer_nbdd_are_no_error(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", some_status())
    said = json.loads((tmp_path / "status.json").read_text())
    said["new"] = said["exports"]["a"]["new"] = 1
    (tmp_path / "status.json").write_text(json.dumps(said))
    assert read_status(tmp_path / "status.json") == some_status()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"exports": {"a": {}}}', '{"exports": 5}'])
def test_another_file_is_refused_with_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(StatusUnreadableError):
        read_status(tmp_path / "status.json")
