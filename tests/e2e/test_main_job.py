"""The main job through all processes: what is in a restore point is what the snapshot held."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sendense_lab.client import LabClient
from whole_node import kept_snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VM = "main-job"
FILE = "/var/www/html/index.php"


@pytest.fixture(scope="module")
def backups(api: Any, lab: LabClient, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A full and two increments; the guest goes on writing while the last one runs."""
    lab.create_vm(VM, ["256M:ext4", "320M:xfs"], small_files=400, seed=3)
    made = [api.back_up(VM, "full")]
    lab.guest_run(VM, share=0.05, seed=5)
    page = tmp_path_factory.mktemp("main") / "index.php"
    page.write_text("<?php echo 'second point';\n")
    lab.guest_put(VM, page, FILE)
    made.append(api.back_up(VM, "incremental"))
    page.write_text("<?php echo 'third point';\n")
    lab.guest_put(VM, page, FILE)
    stop = threading.Event()

    def keep_writing() -> None:
        seed = 100
        while not stop.is_set():
            lab.guest_write(VM, 0, 200 << 20, seed=seed, length=1 << 20)
            seed += 1

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        made.append(api.back_up(VM, "incremental"))
    finally:
        stop.set()
        writer.join()
    return made


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("disk", [0, 1])
def test_a_layer_equals_the_snapshot_it_was_made_from(
    backups: list[dict[str, Any]], lab: LabClient, tmp_path: Path, number: int, disk: int
) -> None:
    backup = backups[number]
    raw = tmp_path / "snapshot.raw"
    lab.export(VM, disk, raw, snapshot=kept_snapshot(lab, VM, backup["backup_id"]))
    layer = backup["disks"][disk]["path"]
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, layer], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_snapshot_is_left_at_the_vcenter(backups: list[dict[str, Any]], lab: LabClient) -> None:
    assert [snapshot for snapshot in lab.snapshots(VM) if not snapshot["kept"]] == []


def test_an_increment_moves_at_most_a_tenth_more_than_changed(backups: list[dict[str, Any]]) -> None:
    moved = int(backups[1]["bytes_transferred"])
    changed = sum(int(disk["changed_bytes"]) for disk in backups[1]["disks"])
    assert 0 < moved <= 1.10 * changed


def test_types_parents_and_reasons_are_told(backups: list[dict[str, Any]]) -> None:
    full, first, second = backups
    assert [b["backup_type"] for b in backups] == ["full", "incremental", "incremental"]
    assert full["parent_backup_id"] == ""
    assert first["parent_backup_id"] == full["backup_id"]
    assert second["parent_backup_id"] == first["backup_id"]
    assert all(disk["reason"] for backup in backups for disk in backup["disks"])
    assert all(disk["change_id"] for backup in backups for disk in backup["disks"])


def test_layers_lie_where_the_spec_says(backups: list[dict[str, Any]]) -> None:
    for backup, prefix in zip(backups, ("full-", "incr-", "incr-"), strict=True):
        for number, disk in enumerate(backup["disks"]):
            path = Path(disk["path"])
            assert path.parent.name == f"disk-{number}"
            assert path.name.startswith(prefix)
            assert path.suffix == ".qcow2"
            assert path.stat().st_mode & 0o222 == 0


def test_listing_and_chain_tell_the_same_story(backups: list[dict[str, Any]], api: Any) -> None:
    listed = api.get("/backup/list", vm_name=VM).json()["backups"]
    assert [b["backup_id"] for b in listed] == [b["backup_id"] for b in reversed(backups)]
    chain = api.get("/backup/chain", vm_name=VM).json()
    assert [c["disk_id"] for c in chain["chains"]] == [0, 1]
    for disk_chain in chain["chains"]:
        assert disk_chain["full_backup_id"] == backups[0]["backup_id"]
        assert disk_chain["latest_backup_id"] == backups[2]["backup_id"]
        assert disk_chain["total_backups"] == 3
        assert int(disk_chain["total_size_bytes"]) == sum(int(layer["size_bytes"]) for layer in disk_chain["layers"])
        assert [layer["backup_id"] for layer in disk_chain["layers"]] == [b["backup_id"] for b in backups]


def test_plain_qemu_restores_a_point(backups: list[dict[str, Any]], lab: LabClient, tmp_path: Path) -> None:
    target, raw = tmp_path / "restored.raw", tmp_path / "snapshot.raw"
    layer = backups[1]["disks"][0]["path"]
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", layer, target], check=True)
    lab.export(VM, 0, raw, snapshot=kept_snapshot(lab, VM, backups[1]["backup_id"]))
    assert _sha256(target) == _sha256(raw)


@pytest.mark.parametrize(("number", "content"), [(1, "second point"), (2, "third point")])
def test_a_file_comes_back_as_it_was_then(backups: list[dict[str, Any]], api: Any, number: int, content: str) -> None:
    mount = api.post("/restore/mount", {"backup_id": backups[number]["backup_id"], "mode": "read-only"})
    assert mount.status_code == 200, mount.text
    mount_id = mount.json()["mount_id"]
    assert Path(mount.json()["mount_path"], "etc/fstab").is_file()
    names = [e["name"] for e in api.get(f"/restore/{mount_id}/files", path="/var/www/html").json()["entries"]]
    assert "index.php" in names
    assert content in api.get(f"/restore/{mount_id}/download", path=FILE).text
    assert api.delete(f"/restore/{mount_id}").status_code == 200
    assert api.get(f"/restore/{mount_id}/files", path="/").status_code == 404


def test_the_second_disk_is_where_the_guest_mounts_it(
    backups: list[dict[str, Any]], api: Any, lab: LabClient, tmp_path: Path
) -> None:
    mount = api.post("/restore/mount", {"backup_id": backups[0]["backup_id"]}).json()
    volumes = {v["guest_path"]: v["file_system"] for v in mount["volumes"]}
    assert volumes["/"] == "ext4"
    assert "xfs" in volumes.values()
    api.delete(f"/restore/{mount['mount_id']}")


def test_the_job_log_tells_each_step(backups: list[dict[str, Any]], api: Any) -> None:
    entries = api.get(f"/backup/{backups[0]['backup_id']}/log").json()["entries"]
    assert len({entry["step"] for entry in entries}) >= 6
    assert all(entry["message"] for entry in entries)


def test_watching_ends_with_a_final_status(backups: list[dict[str, Any]], api: Any) -> None:
    started = time.monotonic()
    with api.client.stream("GET", f"/api/v1/backup/{backups[0]['backup_id']}/watch") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line for line in answer.iter_lines() if line.startswith("data:")]
    assert '"completed"' in events[-1]
    assert time.monotonic() - started < 20


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
