"""What the lab remembers of its virtual machines, as immutable records saved as JSON.

A record is never changed: an operation makes a new one, saves it atomically and only then shows it to others, so
readers (SOAP threads) need no lock and a killed server finds the last complete state.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sendense_lab.areas import Area

Filesystem = Literal["ext4", "xfs"]
PowerState = Literal["poweredOn", "poweredOff"]
DiskMode = Literal["persistent", "independent_persistent", "independent_nonpersistent"]
RawMapping = Literal["physicalMode", "virtualMode"]
BusSharing = Literal["noSharing", "virtualSharing", "physicalSharing"]
ConnectionState = Literal["connected", "disconnected", "inaccessible", "orphaned"]
Tools = Literal["running", "notRunning", "notInstalled"]


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(Record):
    """A host or a datastore."""

    name: str
    moref: str


HOST = Place(name="lab-host.local", moref="host-9")
"""The host on which VMs are, unless told otherwise."""
DATASTORE = Place(name="labstore", moref="datastore-10")
"""The datastore of every VM's own files, and of its disks unless told otherwise."""


class Layer(Record):
    """One file of a disk's redo logs, in the VM's folder of the datastore.

    A base (`web-flat.vmdk`, no parent) holds the whole disk. A delta (`web-000001-delta.vmdk`) is a sparse file of
    the same size that holds `areas` at their own offsets; everything else is read from its parent.
    """

    file: str
    descriptor: str
    """The name that VMware shows for it: `web.vmdk`, `web-000001.vmdk`."""
    parent: str | None = None
    """`file` of the layer below; None for a base."""
    areas: tuple[Area, ...] = ()
    """What a delta holds, in whole 64 KiB blocks."""


class Tracking(Record):
    """Changed block tracking of one disk.

    `log[n]` holds the areas written while `n` was the current sequence; a snapshot raises the sequence, so
    what changed from change id `uuid/n` up to a snapshot with `uuid/m` is the union of log[n] … log[m-1].
    """

    uuid: str
    sequence: int
    log: dict[int, tuple[Area, ...]] = {}


class Device(Record):
    """A virtual disk as hardware: slot, identity, size, and the file that it shows."""

    key: int
    bus: int = 0
    """Number of its SCSI controller."""
    unit: int
    label: str
    uuid: str
    capacity: int
    base: str
    """Name that its files start with: `web`, `web_1`."""
    top: str
    """`file` of its layer: of a VM's disk the one that takes the guest's writes, in a snapshot a frozen one."""
    mode: DiskMode = "persistent"
    mapping: RawMapping | None = None
    """Raw device mapping; None for a disk in a file."""
    multi_writer: bool = False
    datastore: Place = DATASTORE
    filesystem: Filesystem | None = None
    """None for a blank disk."""
    filesystem_uuid: str = ""
    mountpoint: str = ""

    @property
    def in_snapshots(self) -> bool:
        """Whether a snapshot freezes it: independent disks and physical mappings are left out."""
        return self.mode == "persistent" and self.mapping != "physicalMode"


class DiskRecord(Device):
    """A disk of a VM as it is now."""

    tracking: Tracking | None = None
    pending_overlay: str | None = None
    """Overlay of a guest operation whose areas are in the log and whose bytes are being written into the top."""


class SnapshotDisk(Device):
    """A disk as one snapshot saw it; one that snapshots leave out shows the live file."""

    change_id: str | None
    tracking: Tracking | None = None
    """The disk's tracking as it was then, for a revert."""

    @classmethod
    def of(cls, disk: Device, change_id: str | None, tracking: Tracking | None) -> SnapshotDisk:
        """Returns a disk's hardware as a snapshot keeps it."""
        hardware = {name: getattr(disk, name) for name in Device.model_fields}
        return cls(change_id=change_id, tracking=tracking, **hardware)


class Controller(Record):
    """A SCSI controller."""

    bus: int
    sharing: BusSharing = "noSharing"


class SnapshotRecord(Record):
    """One snapshot; a VM's snapshots form a tree, listed in the order of their creation."""

    moref: str
    number: int
    name: str
    description: str
    created: datetime
    parent: str | None
    """Managed object id of the snapshot before it."""
    quiesced: bool
    power_state: PowerState
    tracking_enabled: bool
    controllers: tuple[Controller, ...]
    disks: tuple[SnapshotDisk, ...]

    def disk(self, key: int) -> SnapshotDisk | None:
        """Returns the disk with this device key."""
        return next((disk for disk in self.disks if disk.key == key), None)


class KeptDisk(Record):
    """Content of a removed snapshot's disk.

    With a `base` the file holds only what was overwritten there since (`saved`); the rest is still in the base, or
    in the file of a snapshot of it removed later. Else the file is the whole raw content.
    """

    key: int
    uuid: str
    file: str
    capacity: int
    change_id: str | None
    base: str | None
    """`file` of the layer that still holds most of it."""
    saved: tuple[Area, ...] = ()


class KeptSnapshot(Record):
    """A removed snapshot whose content was kept for comparison."""

    moref: str
    name: str
    description: str
    created: datetime
    removed: datetime
    disks: tuple[KeptDisk, ...]


class VmRecord(Record):
    """A virtual machine."""

    moref: str
    name: str
    folder: str
    """Folder below the datacenter's VM folder; empty for the VM folder itself."""
    directory: str
    """Folder in the datastore."""
    uuid: str
    """BIOS uuid; nothing keeps two VMs from having the same."""
    instance_uuid: str
    hardware_version: int = 19
    tracking_supported: bool = True
    power_state: PowerState = "poweredOn"
    connection: ConnectionState = "connected"
    host: Place = HOST
    tools: Tools = "running"
    template: bool = False
    encrypted: bool = False
    attributes: dict[str, str] = Field(default_factory=dict)
    """Custom attributes: name to value."""
    seed: int
    memory_mb: int = 2048
    cpus: int = 2
    tracking_enabled: bool = False
    """config.changeTrackingEnabled: what was asked for; disks follow at the next stun."""
    controllers: tuple[Controller, ...] = (Controller(bus=0),)
    disks: tuple[DiskRecord, ...]
    layers: dict[str, Layer]
    """All files of its disks and snapshots."""
    snapshots: tuple[SnapshotRecord, ...] = ()
    current: str | None = None
    """The snapshot on which the VM works now."""
    kept: tuple[KeptSnapshot, ...] = ()
    snapshots_made: int = 0

    def tracks(self, disk: Device) -> bool:
        """Whether change tracking follows a disk: it was asked for, and the disk is in snapshots and not shared."""
        shared = any(found.sharing != "noSharing" for found in self.controllers if found.bus == disk.bus)
        return self.tracking_enabled and disk.in_snapshots and not disk.multi_writer and not shared

    def disk(self, key: int) -> DiskRecord | None:
        """Returns the disk with this device key."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def disk_like(self, device: Device) -> DiskRecord | None:
        """Returns the disk that is a snapshot's disk today, whichever slot it has now."""
        return next((disk for disk in self.disks if (disk.uuid, disk.base) == (device.uuid, device.base)), None)

    def snapshot(self, moref: str | None) -> SnapshotRecord | None:
        """Returns the open snapshot with this managed object id."""
        return next((snapshot for snapshot in self.snapshots if snapshot.moref == moref), None)

    def children(self, moref: str | None) -> tuple[SnapshotRecord, ...]:
        """Returns the snapshots made on a snapshot (None: those that are roots), oldest first."""
        return tuple(snapshot for snapshot in self.snapshots if snapshot.parent == moref)

    def line(self) -> tuple[SnapshotRecord, ...]:
        """Returns the snapshots on which the VM works now, oldest first."""
        found: list[SnapshotRecord] = []
        here = self.snapshot(self.current)
        while here is not None:
            found.append(here)
            here = self.snapshot(here.parent)
        return tuple(reversed(found))

    def chain(self, file: str) -> tuple[Layer, ...]:
        """Returns a layer with all below it, base first."""
        found: list[Layer] = []
        here: str | None = file
        while here is not None:
            found.append(self.layers[here])
            here = found[-1].parent
        return tuple(reversed(found))

    def with_disk(self, disk: DiskRecord) -> VmRecord:
        """Returns the record with this disk in place of the one with its key."""
        return self.model_copy(update={"disks": tuple(disk if old.key == disk.key else old for old in self.disks)})

    def with_layers(self, *layers: Layer, without: Iterable[str] = ()) -> VmRecord:
        """Returns the record with these layers added or replaced, and others gone."""
        gone = set(without)
        kept = {file: layer for file, layer in self.layers.items() if file not in gone}
        return self.model_copy(update={"layers": kept | {layer.file: layer for layer in layers}})

    @property
    def datastores(self) -> tuple[Place, ...]:
        """The datastores on which its files are, that of its own first."""
        return tuple(dict.fromkeys([DATASTORE, *(disk.datastore for disk in self.disks)]))

    @property
    def files_in_use(self) -> set[str]:
        """Layers that a disk or a snapshot shows."""
        shown = {disk.top for disk in self.disks}
        return shown | {disk.top for snapshot in self.snapshots for disk in snapshot.disks}

    @property
    def consolidation_needed(self) -> bool:
        """Whether a file is left that no disk and no snapshot needs for itself, and that could be merged away."""
        parents = [layer.parent for layer in self.layers.values()]
        in_use = self.files_in_use
        return any(file not in in_use and parents.count(file) <= 1 for file in self.layers)
