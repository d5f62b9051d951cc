"""A guest that writes by itself: snapshots stay as they were, tracking keeps up, and it stops when told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_rig import Vcenter, areas_of, blocks, differing_blocks, disks

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError


def test_a_busy_guest_changes_disks_and_no_snapshot(
    lab: LabClient, vcenter: Vcenter, exported: Callable[..., Path]
) -> None:
    vm = vcenter.vm(lab.create_vm("busy", ["4M:blank", "2M:blank@1"])["moref"])
    vcenter.enable_tracking(vm)
    with lab.writing("busy", seed=1, length=100_000, pause_ms=1):
        before = vcenter.snapshot(vm, "before")
        change_id = disks(before.config)[0].backing.changeId
        old = exported("busy", 0, "before")
        time.sleep(0.2)
        assert differing_blocks(old, exported("busy", 0, "before")) == set()
        vcenter.remove(before)
        time.sleep(0.1)
        after = vcenter.snapshot(vm, "after")
        new = exported("busy", 0, "after")
        assert differing_blocks(old, new) == blocks(areas_of(vm, after, 2000, change_id)) != set()
        with pytest.raises(LabError):
            lab.start_writing("busy")
        lab.power_off("busy")
        rest = exported("busy", 0)
        time.sleep(0.05)
        assert differing_blocks(rest, exported("busy", 0)) == set()
        lab.power_on("busy")
    assert lab.stop_writing("busy")["writes"] == 0  # it had been stopped
    lab.start_writing("busy", pause_ms=0)
    lab.delete_vm("busy")
    with pytest.raises(LabError):
        lab.start_writing("busy")
