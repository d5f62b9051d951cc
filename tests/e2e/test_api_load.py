"""Many REST clients at once while a backup runs: no error. `make bench` has the figures of 200 for a minute."""

from __future__ import annotations

from typing import Any

import pytest

from rest_load import load
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


async def test_many_clients_get_no_error_while_a_backup_runs(node: RunningNode, lab: LabClient, api: Any) -> None:
    lab.create_vm("loaded", ["64M:ext4"], small_files=10)
    done = api.back_up("loaded", "full")["backup_id"]
    running = api.post("/backup/start", {"vm_name": "loaded", "backup_type": "full"}).json()["backup_id"]
    came = await load(node.home, [done, running], clients=50, duration=5)
    assert came.errors == []
    assert set(came.seconds) == {"list", "get", "watch"}
    assert api.finished(running, 300)["status"] == "completed"
