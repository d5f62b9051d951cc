"""200 REST clients for a minute on list, get and watch while two backups run: times, errors, memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figures import Row, run_script

from rest_load import load, percentile
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api

CLIENTS = int(os.environ.get("SENDENSE_LOAD_CLIENTS", "200"))
SECONDS = float(os.environ.get("SENDENSE_LOAD_SECONDS", "60"))


def rows() -> list[Row]:
    """Runs the load on a node of its own."""
    home = Path(tempfile.mkdtemp(prefix="ba-", dir="/var/tmp"))
    try:
        with RunningNode(home) as node:
            return _measured(node)
    finally:
        shutil.rmtree(home)


def _measured(node: RunningNode) -> list[Row]:
    api, lab = Api(node), LabClient(node.home)
    for name in ("load-1", "load-2"):
        lab.create_vm(name, ["1G:ext4"], small_files=200)
    done = api.back_up("load-1", "full")["backup_id"]
    running = [
        api.post("/backup/start", {"vm_name": name, "backup_type": "full"}).json()["backup_id"]
        for name in ("load-1", "load-2")
    ]
    came = asyncio.run(load(node.home, [done, *running], CLIENTS, SECONDS))
    for backup_id in running:
        api.finished(backup_id, 200)
    api.client.close()
    name = f"{CLIENTS} REST clients, {SECONDS:.0f} s, two backups"
    found = [
        row
        for kind, taken in sorted(came.seconds.items())
        for row in (
            Row.of(f"{name}: {kind}, median", [percentile(taken, 0.5) * 1000], unit="ms"),
            Row.of(f"{name}: {kind}, 99th percentile", [percentile(taken, 0.99) * 1000], unit="ms"),
        )
    ]
    requests = sum(map(len, came.seconds.values()))
    quarter = max(1, len(came.resident) // 4)
    growth = sum(came.resident[-quarter:]) / sum(came.resident[quarter : 2 * quarter] or came.resident[:quarter])
    return [
        *found,
        Row.of(f"{name}: requests", [requests / SECONDS], unit="1/s"),
        Row.of(f"{name}: errors", [len(came.errors)], unit="errors"),
        Row.of(f"{name}: memory of the node, last quarter against second", [growth], unit="×"),
    ]


if __name__ == "__main__":
    run_script(__doc__, rows)
