"""Where the records live: one JSON file for the lab and one for each VM, each replaced atomically."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from sendense_lab.errors import LabError
from sendense_lab.labrecord import LabRecord
from sendense_lab.records import Record, VmRecord

_AnyRecord = TypeVar("_AnyRecord", bound=Record)


class LabStore:
    """The lab's folder.

    Attributes:
        root: `$SENDENSE_HOME/lab`.
        datastore: The VMs' files, one folder each, whatever datastore they are on.
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
            return _load(path, LabRecord)
        return LabRecord(instance_uuid=str(uuid.uuid4()))

    def save_lab(self, record: LabRecord) -> None:
        """Replaces the lab's record."""
        _save(self.root / "lab.json", record)

    def load_vms(self) -> list[VmRecord]:
        """Returns all VMs in the order of their creation.

        Of two records with one folder the later is the VM: a killed server was registering it again.
        """
        records = [_load(path, VmRecord) for path in self._vms.glob("vm-*.json")]
        records.sort(key=lambda record: int(record.moref.removeprefix("vm-")))
        latest = {record.directory: record for record in records}
        for record in records:
            if latest[record.directory] is not record:
                self.delete_vm(record.moref)
        return [record for record in records if latest[record.directory] is record]

    def save_vm(self, record: VmRecord) -> None:
        """Replaces a VM's record."""
        _save(self._vms / f"{record.moref}.json", record)

    def delete_vm(self, moref: str) -> None:
        """Forgets a VM; its files are the caller's business."""
        (self._vms / f"{moref}.json").unlink(missing_ok=True)


def _load(path: Path, kind: type[_AnyRecord]) -> _AnyRecord:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as err:
        raise LabError(
            f"{path} cannot be read: {err.error_count()} fields are not as this version writes them",
            reason="STATE_UNREADABLE",
            help="It was written by another version of the lab. Remove the folder `lab` and make the VMs again.",
        ) from err


def _save(path: Path, record: Record) -> None:
    """Writes beside and renames: a killed server leaves the old record or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(record.model_dump_json())
    partial.replace(path)
