"""VMs, disks and snapshots as the rest of the agent sees them, free of pyVmomi and protobuf."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VmRef:
    """A VM's identity: a moref can change and a name is not unique.

    Attributes:
        vcenter_uuid: vCenter's instance uuid.
        vm_uuid: The VM's instance uuid.
    """

    vcenter_uuid: str
    vm_uuid: str


@dataclass(frozen=True)
class Holder:
    """For whom something is changed.

    Attributes:
        job_id: A backup id.
        attempt: Counts the executions of the job, from 1.
        installation_id: Which Sendense.
    """

    job_id: str
    attempt: int
    installation_id: str


@dataclass(frozen=True)
class Disk:
    """A virtual disk, of a VM or as a snapshot froze it.

    Attributes:
        device_key: Key in the VM's hardware.
        identity: Stable over moves to other slots: the backing's uuid and the device key.
        label: Such as `Hard disk 1`.
        capacity_bytes: Its size.
        file_name: `[datastore] folder/file.vmdk`.
        change_id: Change id of the backing asked; may be empty.
        skip_reason: Why it cannot be captured; empty when it can.
        is_delta: Whether the backing is on top of another one.
        datastore_moref: Where it lies; empty when unknown.
    """

    device_key: int
    identity: str
    label: str
    capacity_bytes: int
    file_name: str
    change_id: str
    skip_reason: str
    is_delta: bool = False
    datastore_moref: str = ""

    def __str__(self) -> str:
        return f"{self.label} ({self.file_name})"


@dataclass(frozen=True)
class Vm:
    """A virtual machine; disks, free room and hardware only when it was inspected."""

    vcenter_uuid: str
    vm_uuid: str
    moref: str
    name: str
    inventory_path: str
    power_state: str
    template: bool
    hardware_version: str
    change_tracking_supported: bool
    change_tracking_enabled: bool
    consolidation_needed: bool
    snapshot_count: int
    disks: tuple[Disk, ...] = ()
    datastore_free_bytes: int = 0
    hardware_json: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that a job made.

    Attributes:
        moref: Managed object reference.
        name: Its name.
        created_at: When, in UTC.
        quiesced: Whether the guest's file systems were quiesced.
        disks: With the change ids of the snapshot's backings.
    """

    moref: str
    name: str
    created_at: dt.datetime
    quiesced: bool
    disks: tuple[Disk, ...] = field(default_factory=tuple)
