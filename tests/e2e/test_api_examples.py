"""What the documents show works as it stands: the specification's requests with curl, the Python client's examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import fresh_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    """A node of their own: `pgtest2` must be one VM. Each test begins with a full, whatever the other left."""
    with fresh_node() as running:
        LabClient(running.home).create_vm("pgtest2", ["96M:ext4"], small_files=20)
        yield running


class Curl:
    """curl, as a person types it."""

    def __init__(self, node: RunningNode, folder: Path) -> None:
        self._base = (node.home / "endpoint").read_text().strip()
        token = (node.home / "admin.token").read_text().strip()
        self._options = folder / "curlrc"
        self._options.write_text(f'header = "Authorization: Bearer {token}"\ncacert = "{node.home}/tls/ca.crt"\n')

    def __call__(self, verb: str, path: str, body: str = "") -> bytes:
        data = ["-H", "Content-Type: application/json", "-d", body] if body else []
        command = ["curl", "-sS", "--fail-with-body", "-K", self._options, "-X", verb, *data, f"{self._base}{path}"]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, (path, done.stdout, done.stderr)
        return done.stdout

    def json(self, verb: str, path: str, body: str = "") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(verb, path, body))
        return found


def ended(curl: Curl, backup_id: str) -> None:
    deadline = time.monotonic() + 120
    while (backup := curl.json("GET", f"/api/v1/backup/{backup_id}"))["status"] in ("pending", "running"):
        assert time.monotonic() < deadline, backup
        time.sleep(0.2)
    assert backup["status"] == "completed", backup


def test_the_specifications_requests_work_with_curl(node: RunningNode, tmp_path: Path) -> None:
    curl = Curl(node, tmp_path)
    full = curl.json(
        "POST",
        "/api/v1/backup/start",
        """{
  "vm_name": "pgtest2",
  "backup_type": "full",
  "repository": "local"
}""",
    )
    assert full["status"] == "pending"
    ended(curl, full["backup_id"])
    increment = curl.json(
        "POST",
        "/api/v1/backup/start",
        """{
  "vm_name": "pgtest2",
  "backup_type": "incremental",
  "repository": "local"
}""",
    )
    ended(curl, increment["backup_id"])
    listed = curl.json("GET", "/api/v1/backup/list?vm_name=pgtest2")["backups"]
    assert [backup["backup_id"] for backup in listed][:2] == [increment["backup_id"], full["backup_id"]]
    chain = curl.json("GET", "/api/v1/backup/chain?vm_name=pgtest2")["chains"][0]
    assert (chain["full_backup_id"], chain["total_backups"]) == (full["backup_id"], 2)
    mount = curl.json(
        "POST",
        "/api/v1/restore/mount",
        f"""{{
  "backup_id": "{increment["backup_id"]}",
  "mode": "read-only"
}}""",
    )
    assert mount["mount_path"].endswith(mount["mount_id"])
    found = curl.json("GET", f"/api/v1/restore/{mount['mount_id']}/files?path=/var/www/html")
    assert "index.php" in {entry["name"] for entry in found["entries"]}
    assert curl("GET", f"/api/v1/restore/{mount['mount_id']}/download?path=/var/www/html/index.php")
    curl("DELETE", f"/api/v1/restore/{mount['mount_id']}")
    curl("DELETE", f"/api/v1/backup/{increment['backup_id']}")
    listed = curl.json("GET", "/api/v1/backup/list?vm_name=pgtest2")["backups"]
    assert listed[0]["backup_id"] == full["backup_id"]


def test_the_python_clients_examples_run_as_they_stand(node: RunningNode, tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python-client.md").read_text(), re.S | re.M)
    assert len(examples) == 3
    said = ""
    for example in examples:
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            env={**os.environ, "SENDENSE_HOME": str(node.home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, example + done.stderr
        said += done.stdout
    assert "completed" in said
    assert "VM_NOT_FOUND" in said
    assert (tmp_path / "index.php").read_bytes()
