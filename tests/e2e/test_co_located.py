"""An agent on the node's own machine that skips the tunnel: the same layers, the same journal, the same proofs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sendense_lab.client import LabClient
from whole_node import Api, fresh_node, kept_snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VM = "beside"


def require_snapshot(lab: LabClient, backup: dict[str, Any], raw: Path) -> None:
    """The layer, with those below it, reads as the snapshot it was made from."""
    lab.export(VM, 0, raw, snapshot=kept_snapshot(lab, VM, backup["backup_id"]))
    layer = backup["disks"][0]["path"]
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, layer], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr


def test_a_full_and_an_increment_without_any_lane(tmp_path: Path) -> None:
    with fresh_node(SENDENSE_AGENT_DATA_PATH="direct", SENDENSE_LAB_KEEP_SNAPSHOTS="1") as node:
        lab, api = LabClient(node.home), Api(node)
        try:
            lab.create_vm(VM, ["64M:blank"], small_files=0)
            lab.guest_write(VM, 0, 3 << 20, seed=1, length=20 << 20)
            full = api.back_up(VM, "full")
            lab.guest_write(VM, 0, 8 << 20, length=5 << 20, zero=True)
            lab.guest_write(VM, 0, 40 << 20, seed=2, length=1 << 20)
            increment = api.back_up(VM, "incremental")
            assert increment["backup_type"] == "incremental"
            for backup in (full, increment):
                require_snapshot(lab, backup, tmp_path / "raw")
                assert Path(backup["disks"][0]["path"] + ".journal").stat().st_size > 0
            assert not list((node.home / "run" / "agent").glob("*-lane-*")), "no lane was made"
        finally:
            api.client.close()
