"""What several end-to-end tests need to know about the lab."""

from __future__ import annotations

from sendense_lab.client import LabClient


def kept_snapshot(lab: LabClient, vm: str, backup_id: str) -> str:
    """Returns the name of the snapshot that a backup was made from; the lab keeps its content after its removal."""
    names = [snapshot["name"] for snapshot in lab.snapshots(vm) if backup_id in snapshot["name"]]
    assert len(names) == 1, names
    return str(names[0])
