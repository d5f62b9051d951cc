"""What the lab remembers of its virtual machines, as immutable records saved as JSON.

A record is never changed: an operation makes a new one, saves it atomically and only then shows it to others, so
readers (SOAP threads) need no lock and a killed server finds the last complete state.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sendense_lab.areas import Area

Filesystem = Literal["ext4", "xfs"]
PowerState = Literal["poweredOn", "poweredOff"]


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Layer(Record):
    """One file of a disk's redo-log chain, in the VM's folder of the datastore."""

    file: str
    """The file with the bytes: `web-flat.vmdk` (raw) or `web-000001-delta.vmdk` (qcow2)."""
    format: Literal["raw", "qcow2"]
    descriptor: str
    """The name that VMware shows for it: `web.vmdk`, `web-000001.vmdk`."""


class Tracking(Record):
    """Changed block tracking of one disk.

    `log[n]` holds the areas written while `n` was the current sequence; a snapshot raises the sequence, so
    what changed from change id `uuid/n` up to a snapshot with `uuid/m` is the union of log[n] … log[m-1].
    """

    uuid: str
    sequence: int
    log: dict[int, tuple[Area, ...]] = {}


class DiskRecord(Record):
    """A virtual disk: identity, chain of files from the base to the current top, tracking."""

    key: int
    unit: int
    label: str
    uuid: str
    capacity: int
    base: str
    """Name that its files start with: `web`, `web_1`."""
    chain: tuple[Layer, ...]
    filesystem: Filesystem
    filesystem_uuid: str
    mountpoint: str
    tracking: Tracking | None = None
    pending_overlay: str | None = None
    """Overlay of a guest operation whose areas are in the log and whose bytes are being committed."""
    deltas_made: int = 0

    @property
    def top(self) -> Layer:
        """The file that takes the guest's writes."""
        return self.chain[-1]


class SnapshotDisk(Record):
    """A disk as one snapshot froze it."""

    layer: str
    """`file` of the frozen top layer."""
    change_id: str | None
    capacity: int


class SnapshotRecord(Record):
    """One snapshot; a VM's snapshots are a line, oldest first."""

    moref: str
    number: int
    name: str
    description: str
    created: datetime
    quiesced: bool
    power_state: PowerState
    disks: dict[int, SnapshotDisk]


class KeptDisk(Record):
    """Content of a removed snapshot's disk.

    With `undo` the file holds only what was overwritten in the base since (`saved`); the rest is still in the
    base, or in the undo file of a snapshot removed later. Else the file is the whole raw content.
    """

    file: str
    capacity: int
    change_id: str | None
    undo: bool
    saved: tuple[Area, ...] = ()


class KeptSnapshot(Record):
    """A removed snapshot whose content was kept for comparison."""

    moref: str
    name: str
    description: str
    created: datetime
    removed: datetime
    disks: dict[int, KeptDisk]


class VmRecord(Record):
    """A virtual machine."""

    moref: str
    name: str
    folder: str
    """Folder below the datacenter's VM folder; empty for the VM folder itself."""
    directory: str
    """Folder in the datastore."""
    uuid: str
    instance_uuid: str
    hardware_version: int = 19
    power_state: PowerState = "poweredOn"
    template: bool = False
    seed: int
    memory_mb: int = 2048
    cpus: int = 2
    tracking_enabled: bool = False
    """config.changeTrackingEnabled: what was asked for; disks follow at the next stun."""
    disks: tuple[DiskRecord, ...]
    snapshots: tuple[SnapshotRecord, ...] = ()
    kept: tuple[KeptSnapshot, ...] = ()
    snapshots_made: int = 0

    def disk(self, key: int) -> DiskRecord | None:
        """Returns the disk with this device key."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def snapshot(self, moref: str) -> SnapshotRecord | None:
        """Returns the open snapshot with this managed object id."""
        return next((snapshot for snapshot in self.snapshots if snapshot.moref == moref), None)

    def with_disk(self, disk: DiskRecord) -> VmRecord:
        """Returns the record with this disk in place of the one with its key."""
        return self.model_copy(update={"disks": tuple(disk if old.key == disk.key else old for old in self.disks)})

    @property
    def consolidation_needed(self) -> bool:
        """Whether a delta file is left that no snapshot needs."""
        for disk in self.disks:
            referenced = {snapshot.disks[disk.key].layer for snapshot in self.snapshots if disk.key in snapshot.disks}
            if any(layer.file not in referenced for layer in disk.chain[:-1]):
                return True
        return False


class Faults(Record):
    """Misbehaviour that was asked for; each field's default is good behaviour."""

    page_areas: int | None = None
    """Most areas in one answer of QueryChangedDiskAreas; None takes the setting."""


class LabRecord(Record):
    """What belongs to the whole lab."""

    instance_uuid: str
    port: int = 0
    next_id: int = 1000
    folders: dict[str, str] = {}
    """Folders below the datacenter's VM folder: name to managed object id."""
    faults: Faults = Faults()
