"""A whole node with its lab, shared by the end-to-end tests of a session, and the clients that they speak with."""

from __future__ import annotations

import json
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode

FINAL = ("completed", "failed", "cancelled")


class Api:
    """REST as an outsider speaks it."""

    def __init__(self, node: RunningNode, token: str | None = None) -> None:
        self._node = node
        self.endpoint = (node.home / "endpoint").read_text().strip()
        token = token or (node.home / "admin.token").read_text().strip()
        self.client = httpx.Client(
            base_url=self.endpoint,
            verify=ssl.create_default_context(cafile=node.home / "tls" / "ca.crt"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )

    def get(self, path: str, /, **params: str) -> httpx.Response:
        return self.client.get(f"/api/v1{path}", params=params)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(f"/api/v1{path}", json=body)

    def delete(self, path: str, /, **params: str) -> httpx.Response:
        return self.client.delete(f"/api/v1{path}", params=params)

    def finished(self, backup_id: str, seconds: float = 90) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            backup: dict[str, Any] = self.get(f"/backup/{backup_id}").raise_for_status().json()
            if backup["status"] in FINAL:
                return backup
            time.sleep(0.2)
        pytest.fail(f"{backup_id} did not end: {backup}")

    def back_up(self, vm: str, backup_type: str) -> dict[str, Any]:
        answer = self.post("/backup/start", {"vm_name": vm, "backup_type": backup_type})
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "pending"
        backup = self.finished(answer.json()["backup_id"])
        assert backup["status"] == "completed", json.dumps(backup, indent=1)
        return backup


@contextmanager
def fresh_node(**environment: str) -> Iterator[RunningNode]:
    """Runs a node that nobody else uses, where names of VMs that others have made too would be ambiguous."""
    home = Path(tempfile.mkdtemp(prefix="e2e-", dir="/var/tmp"))
    with RunningNode(home, **environment) as running:
        yield running
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def node() -> Iterator[RunningNode]:
    with fresh_node(SENDENSE_LAB_KEEP_SNAPSHOTS="1") as running:
        yield running


@pytest.fixture(scope="session")
def lab(node: RunningNode) -> LabClient:
    return LabClient(node.home)


@pytest.fixture(scope="session")
def api(node: RunningNode) -> Iterator[Api]:
    api = Api(node)
    yield api
    api.client.close()


def kept_snapshot(lab: LabClient, vm: str, backup_id: str) -> str:
    """Returns the moref of the snapshot that a backup was made from; the lab keeps its content after its removal.

    Turning change tracking on makes one of the same name first, which has no change ids yet.
    """
    named = [snapshot for snapshot in lab.snapshots(vm) if backup_id in snapshot["name"]]
    morefs = [snapshot["moref"] for snapshot in named if all(disk["change_id"] for disk in snapshot["disks"])]
    assert len(morefs) == 1, named
    return str(morefs[0])
