"""VMs, disks and snapshots as the rest of the agent sees them, free of pyVmomi and protobuf."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Self


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
class Mark:
    """A place in vCenter's event log: an event.

    Attributes:
        key: Its number; later events have higher ones.
        created: Its time by vCenter's clock, UTC; a log that began anew may use a number again.
    """

    key: int
    created: dt.datetime

    def __str__(self) -> str:
        return f"{self.key}@{self.created.astimezone(dt.UTC).isoformat()}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Returns a mark that was written as text; None when it is none."""
        key, separator, created = text.partition("@")
        try:
            moment = dt.datetime.fromisoformat(created)
            return cls(int(key), moment) if separator and moment.tzinfo else None
        except ValueError:
            return None


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
        slot: Controller's label and unit number.
        datastore: Name of the datastore; empty in lists.
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
    slot: str = ""
    datastore: str = ""

    def __str__(self) -> str:
        return f"{self.label} ({self.file_name})"


@dataclass(frozen=True)
class Datastore:
    """Where disks lie; sizes in bytes."""

    moref: str
    name: str
    capacity_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class VmSnapshot:
    """A snapshot that a VM has now; job and installation are empty for a foreign one."""

    moref: str
    name: str
    created_at: dt.datetime
    job_id: str
    installation_id: str


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
    tools_status: str = ""
    guest_name: str = ""
    host: str = ""
    host_moref: str = ""
    datastores: tuple[Datastore, ...] = ()
    snapshots: tuple[VmSnapshot, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that a job made.

    Attributes:
        moref: Managed object reference.
        name: Its name.
        created_at: When, in UTC.
        quiesced: Whether the guest's file systems were quiesced.
        disks: With the change ids of the snapshot's backings.
        quiesce_problem: Why the guest could not be quiesced although it was asked for.
        alone: Whether the VM had no other snapshot right after this one was made.
        event_mark: Place in the event log, as text; empty when the log could not be read.
    """

    moref: str
    name: str
    created_at: dt.datetime
    quiesced: bool
    disks: tuple[Disk, ...] = field(default_factory=tuple)
    quiesce_problem: str = ""
    alone: bool = False
    event_mark: str = ""
