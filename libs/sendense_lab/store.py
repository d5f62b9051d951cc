"""Where the records live: one JSON file for the lab and one for each VM, each replaced atomically."""

from __future__ import annotations

import uuid
from pathlib import Path

from sendense_lab.records import LabRecord, Record, VmRecord

DATASTORE = "labstore"
"""Name of the one datastore; its files are in `lab/datastore/`."""


class LabStore:
    """The lab's folder.

    Attributes:
        root: `$SENDENSE_HOME/lab`.
        datastore: The VMs' files, one folder each.
        kept: Content of removed snapshots.
        run: Mount points and process ids of operations under way; empty when none is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.datastore = root / "datastore"
        self.kept = root / "kept"
        self.run = root / "run"
        self._vms = root / "vms"
        for folder in (self.datastore, self.kept, self.run, self._vms):
            folder.mkdir(parents=True, exist_ok=True)

    def load_lab(self) -> LabRecord:
        """Returns the lab's record, a fresh one at the first start."""
        path = self.root / "lab.json"
        if path.exists():
            return LabRecord.model_validate_json(path.read_bytes())
        return LabRecord(instance_uuid=str(uuid.uuid4()))

    def save_lab(self, record: LabRecord) -> None:
        """Replaces the lab's record."""
        _save(self.root / "lab.json", record)

    def load_vms(self) -> list[VmRecord]:
        """Returns all VMs in the order of their creation."""
        records = [VmRecord.model_validate_json(path.read_bytes()) for path in self._vms.glob("vm-*.json")]
        return sorted(records, key=lambda record: int(record.moref.removeprefix("vm-")))

    def save_vm(self, record: VmRecord) -> None:
        """Replaces a VM's record."""
        _save(self._vms / f"{record.moref}.json", record)

    def delete_vm(self, moref: str) -> None:
        """Forgets a VM; its files are the caller's business."""
        (self._vms / f"{moref}.json").unlink(missing_ok=True)


def _save(path: Path, record: Record) -> None:
    """Writes beside and renames: a killed server leaves the old record or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(record.model_dump_json(indent=1))
    partial.replace(path)
