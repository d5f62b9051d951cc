"""Repositories over REST and the CLI: administered, verified, found damaged, scanned, lost and imported again."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api, fresh_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VM = "keeper"


def ctl(node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sendense-ctl")), *arguments]
    return subprocess.run(
        command,
        env={"SENDENSE_HOME": str(node.home), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def flip_a_table_entry(image: Path) -> None:
    """Flips a bit in an image's first L2 table."""
    image.chmod(0o644)
    with image.open("r+b") as stream:
        stream.seek(40)
        (l1_offset,) = struct.unpack(">Q", stream.read(8))
        stream.seek(l1_offset)
        place = (struct.unpack(">Q", stream.read(8))[0] & 0x00FF_FFFF_FFFF_FE00) + 5
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 2]))


def job_ended(api: Api, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while True:
        job: dict[str, Any] = api.get(f"/jobs/{job_id}").json()
        if job["status"] not in {"pending", "running"}:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.2)


def test_a_repository_is_administered_lost_and_imported_again(tmp_path: Path) -> None:
    root = tmp_path / "big"
    root.mkdir()
    # Nothing tells nbdd of this directory but its being registered.
    with fresh_node() as node:
        api = Api(node)
        try:
            _the_life_of_a_repository(api, LabClient(node.home), node, root)
        finally:
            api.client.close()


def _the_life_of_a_repository(api: Api, lab: LabClient, node: RunningNode, root: Path) -> None:
    made = api.post("/repositories", {"name": "big", "repository_type": "local", "path": str(root)}).json()
    changed = api.client.patch("/api/v1/repositories/big", json={"reserve_bytes": "1048576", "lock_seconds": "60"})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["reserve_bytes"], changed.json()["lock_seconds"]) == ("1048576", "60")
    assert api.post("/repositories/big/probe", {}).json()["usable"]
    lab.create_vm(VM, ["64M:ext4"], small_files=20, seed=3)
    started = api.post("/backup/start", {"vm_name": VM, "backup_type": "full", "repository": "big"})
    backup = api.finished(started.json()["backup_id"])
    assert backup["status"] == "completed", backup["error_message"]
    backup_id = backup["backup_id"]

    refused = api.delete(f"/backup/{backup_id}", dry_run="true")
    assert refused.json()["reason"] == "POINT_LOCKED"
    verified = job_ended(api, api.post(f"/backup/{backup_id}/verify", {}).json()["job_id"])
    assert verified["status"] == "completed", verified
    full = api.delete("/repositories/big")
    assert full.json()["reason"] == "REPOSITORY_NOT_EMPTY"

    assert api.delete("/repositories/big", forget_points="true").status_code == 200
    again = api.post("/repositories", {"name": "big", "repository_type": "local", "path": str(root)}).json()
    assert again["repository_id"] == made["repository_id"]
    report = api.post("/repositories/big/scan", {}).json()
    assert [each["backup_id"] for each in report["importable_points"]] == [backup_id]
    assert report["findings"] == []
    imported = ctl(node, "repository", "scan", "big", "--import", "--json")
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["imported_backup_ids"] == [backup_id]
    listed = api.get("/backup/list", vm_name=VM).json()["backups"]
    assert [each["backup_id"] for each in listed] == [backup_id]

    increment = api.post("/backup/start", {"vm_name": VM, "backup_type": "incremental", "repository": "big"})
    second = api.finished(increment.json()["backup_id"])
    assert (second["status"], second["backup_type"]) == ("completed", "incremental"), second
    image = Path(backup["disks"][0]["path"])
    image.chmod(0o644)
    with image.open("r+b") as stream:
        stream.seek(-30_000, 2)
        byte = stream.read(1)
        stream.seek(-30_000, 2)
        stream.write(bytes([byte[0] ^ 1]))
    damaged = ctl(node, "backup", "verify", "--backup-id", second["backup_id"])
    assert damaged.returncode != 0
    third = api.post("/backup/start", {"vm_name": VM, "backup_type": "incremental", "repository": "big"})
    outcome = api.finished(third.json()["backup_id"])
    assert outcome["status"] == "completed", outcome
    assert [disk["reason"] for disk in outcome["disks"]] == ["parent layer damaged"]
    assert outcome["backup_type"] == "full"

    # Nobody verifies this one: the repository finds the damage when it is to build on it, and the job goes on.
    flip_a_table_entry(Path(outcome["disks"][0]["path"]))
    fourth = api.post("/backup/start", {"vm_name": VM, "backup_type": "incremental", "repository": "big"})
    found = api.finished(fourth.json()["backup_id"])
    assert (found["status"], found["backup_type"]) == ("completed", "full"), found["error_message"]
    assert [disk["reason"] for disk in found["disks"]] == ["parent layer damaged"]

    shown = ctl(node, "repository", "get", "big")
    assert shown.returncode == 0, shown.stderr
    assert "restore points" in shown.stdout
    assert ctl(node, "repository", "list").stdout.count("big") >= 1
