"""What a person types to get files and disks back, through all processes: mounts, history, exports, serving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sendense_lab.client import LabClient

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VM = "getting-back"
FILE = "/var/www/html/index.php"

Ctl = Callable[..., str]


@pytest.fixture(scope="module")
def backups(api: Any, lab: LabClient, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three points: the file is as it was made, then changed, then as before."""
    lab.create_vm(VM, ["256M:ext4"], small_files=200, seed=9)
    made = [api.back_up(VM, "full")]
    page = tmp_path_factory.mktemp("back") / "index.php"
    page.write_text("<?php echo 'changed';\n")
    lab.guest_put(VM, page, FILE)
    made.append(api.back_up(VM, "incremental"))
    made.append(api.back_up(VM, "incremental"))
    return made


@pytest.fixture
def ctl(node: Any) -> Ctl:
    """Runs `sendense-ctl` on the node and returns what it printed; `code` is the exit status that is expected."""

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [Path(sys.executable).parent / "sendense-ctl", *arguments],
            env={**os.environ, "SENDENSE_HOME": str(node.home)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "vmdk"])
def test_an_exported_disk_equals_the_layer(backups: list[dict[str, Any]], ctl: Ctl, tmp_path: Path, fmt: str) -> None:
    backup = backups[1]
    output = tmp_path / f"disk.{fmt}"
    ctl("backup", "export", "--backup-id", backup["backup_id"], "--format", fmt, "--output", str(output))
    _assert_equal(Path(backup["disks"][0]["path"]), output, fmt)
    assert list(tmp_path.iterdir()) == [output], "something was left beside the output"


def test_a_served_point_equals_the_layer_and_ends(backups: list[dict[str, Any]], ctl: Ctl, tmp_path: Path) -> None:
    point = json.loads(ctl("backup", "serve", "--backup-id", backups[2]["backup_id"], "--json"))
    (disk,) = point["disks"]
    copied = tmp_path / "copy.raw"
    subprocess.run(["nbdcopy", disk["uri"], copied], check=True)
    _assert_equal(Path(backups[2]["disks"][0]["path"]), copied, "raw")
    # It is served for reading only, and cannot be deleted meanwhile.
    written = subprocess.run(["nbdcopy", copied, disk["uri"]], capture_output=True, text=True)
    assert written.returncode != 0
    refused = ctl("backup", "delete", "--backup-id", backups[2]["backup_id"], code=5)
    assert "POINT_LEASED" in refused
    ctl("backup", "unserve", "--served-id", point["served_id"])
    assert point["served_id"] not in ctl("backup", "served")
    assert subprocess.run(["nbdinfo", disk["uri"]], capture_output=True).returncode != 0


def test_history_tells_where_a_file_changed(backups: list[dict[str, Any]], ctl: Ctl) -> None:
    versions = json.loads(ctl("file", "history", "--vm", VM, "--path", FILE, "--json"))["versions"]
    assert [v["backup_id"] for v in versions] == [b["backup_id"] for b in backups]
    assert [v["state"] for v in versions] == ["new", "changed", "same"]
    assert versions[1]["file"]["size_bytes"] == str(len("<?php echo 'changed';\n"))
    absent = json.loads(ctl("file", "history", "--vm", VM, "--path", "/no/such", "--json"))["versions"]
    assert [v["state"] for v in absent] == ["absent"] * 3


def test_a_local_mount_is_made_and_undone_by_its_path(backups: list[dict[str, Any]], ctl: Ctl, tmp_path: Path) -> None:
    place = tmp_path / "restore"
    place.mkdir()  # as in the user guide's example, where the directory may be there
    said = ctl("backup", "mount", "--backup-id", backups[1]["backup_id"], "--path", str(place))
    assert "by kernel" in said
    assert (place / FILE[1:]).read_text() == "<?php echo 'changed';\n"
    with pytest.raises(OSError, match="Read-only"):
        (place / "x").touch()
    ctl("backup", "umount", "--path", str(place))
    assert not os.path.lexists(place)
    place.write_text("mine")
    assert "exists already" in ctl(
        "backup", "mount", "--backup-id", backups[1]["backup_id"], "--path", str(place), code=1
    )


def test_files_are_found_and_a_directory_comes_as_any_archive(
    backups: list[dict[str, Any]], ctl: Ctl, tmp_path: Path
) -> None:
    mount = json.loads(ctl("backup", "mount", "--backup-id", backups[0]["backup_id"], "--json"))
    found = json.loads(ctl("backup", "find", "--mount-id", mount["mount_id"], "index.php", "--json"))
    assert FILE in [entry["path"] for entry in found["entries"]]
    ctl("backup", "umount", "--mount-id", mount["mount_id"])
    for form in ("tar", "tar.zst", "zip"):
        output = tmp_path / f"www.{form}"
        ctl(
            "backup", "extract", "--backup-id", backups[1]["backup_id"], "--file", "/var/www", "--archive", form,
            "--output", str(output),
        )  # fmt: skip
        assert output.stat().st_size > 0


def test_bad_input_is_refused_with_its_reason(
    backups: list[dict[str, Any]], ctl: Ctl, api: Any, tmp_path: Path
) -> None:
    output = str(tmp_path / "x")
    backup_id = backups[0]["backup_id"]
    assert "DISK_NOT_FOUND" in ctl(
        "backup", "export", "--backup-id", backup_id, "--disk", "7", "--output", output, code=3
    )
    assert "BACKUP_NOT_FOUND" in ctl("backup", "serve", "--backup-id", "backup-no", code=3)
    assert "FILE_NOT_FOUND" in ctl(
        "backup", "extract", "--backup-id", backup_id, "--file", "/none", "--output", output, code=3
    )
    assert not list(tmp_path.iterdir())
    for body, reason in (({"backend": "magic"}, "INVALID_FIELD"), ({"mode": "read-write"}, "INVALID_FIELD")):
        answer = api.post("/restore/mount", {"backup_id": backup_id, **body})
        assert (answer.status_code, answer.json()["reason"]) == (400, reason)
    assert api.get("/restore/mount-none/files").json()["reason"] == "MOUNT_NOT_FOUND"
    assert api.get("/restore").json()["mounts"] == []


def _assert_equal(layer: Path, image: Path, fmt: str) -> None:
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "qcow2", "-F", fmt, layer, image], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
