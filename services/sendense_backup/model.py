"""What the backup service talks about, as plain values: VMs, disks, snapshots, layers, jobs.

No clock, no database, no gRPC: `clients` and `convert` make these from messages, `store` from rows.

Over 400 lines: it is the one list of the words that all modules of the service share, without logic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

PENDING = "pending"
RUNNING = "running"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"
SKIPPED = "skipped"

ACTIVE = (PENDING, RUNNING)
"""A VM has at most one job with such a status."""

FINAL = (COMPLETED, FAILED, CANCELLED)
"""A job with such a status never changes it again."""

DELETE = "delete"
CONSOLIDATE = "consolidate"
RETENTION = "retention"
VERIFY = "verify"
SWEEP = "sweep"

OPERATION_KINDS = (DELETE, CONSOLIDATE, RETENTION, VERIFY, SWEEP)
"""What is done to restore points, besides making them."""

BACKUP = "backup"
"""The kind of a job that makes a restore point, where all jobs are listed."""

FULL = "full"
INCREMENTAL = "incremental"
CONSOLIDATED = "consolidated"
"""Why a disk is full that was read as an increment: what it built on went into it."""


@dataclass(frozen=True, slots=True)
class VmRef:
    """A VM's identity: it outlives names and managed object references."""

    vcenter_uuid: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk as the agent reports it, live or in a snapshot.

    Attributes:
        device_key: Key in the VM's hardware.
        identity: Stable identity.
        label: Such as `Hard disk 1`.
        capacity_bytes: Size in bytes.
        change_id: Where the next increment starts; may be empty.
        skip_reason: Why it cannot be captured; empty when it can.
        file_name: `[datastore] folder/file.vmdk`; may be empty.
    """

    device_key: int
    identity: str
    label: str
    capacity_bytes: int
    change_id: str = ""
    skip_reason: str = ""
    file_name: str = ""

    @property
    def datastore(self) -> str:
        """The datastore's name; empty when it is not known."""
        return self.file_name.partition("]")[0].lstrip("[") if self.file_name.startswith("[") else ""


@dataclass(frozen=True, slots=True)
class VmSnapshot:
    """A snapshot that a VM has now; job and installation are empty for a foreign one."""

    moref: str
    name: str
    created_at: datetime
    job_id: str = ""
    installation_id: str = ""


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM as its vCenter shows it; `disks` and `hardware_json` are empty in lists."""

    ref: VmRef
    name: str
    inventory_path: str
    power_state: str
    template: bool = False
    change_tracking_supported: bool = False
    change_tracking_enabled: bool = False
    consolidation_needed: bool = False
    snapshot_count: int = 0
    datastore_free_bytes: int = 0
    hardware_json: str = ""
    disks: tuple[Disk, ...] = ()
    snapshots: tuple[VmSnapshot, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def datastores(self) -> tuple[str, ...]:
        """Datastores that hold a disk of it, by name."""
        return tuple(sorted({disk.datastore for disk in self.disks if disk.datastore}))


@dataclass(frozen=True, slots=True)
class KnownVm:
    """A VM and the agent that knows it."""

    agent_id: str
    vm: Vm


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """What must be known of a snapshot before an increment may build on it.

    Attributes:
        alone: Whether the VM had no other snapshot then.
        event_mark: Place in vCenter's event log; empty when the log could not be read.
        vcenter_uuid: Where it was made; empty when unknown.
    """

    alone: bool = False
    event_mark: str = ""
    vcenter_uuid: str = ""


@dataclass(frozen=True, slots=True)
class RevertLook:
    """What an agent found in vCenter's event log.

    Attributes:
        finding: `no revert`, `reverted` or `incomplete`.
        detail: Which revert, or what the log lacks.
    """

    finding: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The job's snapshot; why it is not quiesced although that was asked for is in `quiesce_problem`."""

    moref: str
    name: str
    created_at: datetime
    quiesced: bool
    disks: tuple[Disk, ...]
    quiesce_problem: str = ""
    facts: SnapshotFacts = field(default_factory=SnapshotFacts)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as the repository describes it; sizes in bytes. `damage` is what was found wrong with it or below it.

    `suspicion` says why its content may be wrong although its file is as it was written. `verified_at` is when its file
    was last read back and found sound.
    """

    layer_id: str
    disk_id: int
    disk_identity: str
    backup_type: str
    backup_id: str
    chain_id: str
    parent_layer_id: str
    path: str
    virtual_size_bytes: int
    stored_bytes: int
    change_id: str
    cluster_size_bytes: int
    created_at: datetime | None = None
    damage: str = ""
    suspicion: str = ""
    verified_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A committed restore point."""

    backup_id: str
    repository_id: str
    vm_uuid: str
    layers: tuple[Layer, ...]
    hardware_json: str = ""


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A restore point as storage describes it; `reasons` and `copied_bytes` are of its layers, in their order."""

    backup_id: str
    vm_uuid: str
    vm_name: str
    vm_context_id: str
    sequence: int
    snapshot_at: datetime | None
    committed_at: datetime
    previous_backup_id: str
    hardware_json: str
    layers: tuple[Layer, ...]
    reasons: tuple[str, ...]
    copied_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A full and the increments on it, of one disk."""

    chain_id: str
    disk_id: int
    full_backup_id: str
    latest_backup_id: str
    total_backups: int
    total_size_bytes: int
    current: bool
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Repository:
    """A place for restore points."""

    repository_id: str
    name: str
    repository_type: str
    path: str
    enabled: bool
    available_size_bytes: int
    total_size_bytes: int = 0
    full_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """For which job and attempt a mutation is made; services refuse older attempts."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """What retention keeps: a point stays when any rule keeps it; all zero keeps everything.

    Attributes:
        keep_last: The newest so many points of a VM.
        keep_hourly: The newest point of each of the newest so many hours that have one; the same for the others.
        min_age_seconds: Points younger than this stay, whatever else is said.
        time_zone: IANA name of the zone in which hours to years are counted; empty for UTC.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    min_age_seconds: int = 0
    time_zone: str = ""

    @property
    def keeps_everything(self) -> bool:
        """Whether no rule takes anything away."""
        return not any(
            (self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly)
        )


@dataclass(frozen=True, slots=True)
class VmContext:
    """A VM's row in the catalogue."""

    context_id: str
    vm_name: str
    ref: VmRef
    agent_id: str


@dataclass(frozen=True, slots=True)
class JobDisk:
    """One disk's share of a job: a row of `backup_disks`. Sizes in bytes; `disk_id` is -1 until it is allotted."""

    position: int
    device_key: int
    identity: str
    label: str
    disk_id: int
    backup_type: str
    reason: str
    status: str
    capacity_bytes: int
    change_id: str
    parent_backup_id: str
    parent_layer_id: str
    parent_change_id: str
    layer_id: str
    chain_id: str
    path: str
    cluster_size_bytes: int
    changed_bytes: int
    total_bytes: int
    bytes_transferred: int
    journal_sequence: int
    journal_floor_bytes: int
    phase: str = ""
    rate_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A backup: a row of `backup_jobs` and, where asked for, its disks."""

    backup_id: str
    vm_context_id: str
    vm_name: str
    ref: VmRef
    agent_id: str
    backup_type: str
    requested_type: str
    status: str
    repository_id: str
    repository: str
    repository_type: str
    repository_path: str
    parent_backup_id: str
    change_id: str
    bytes_transferred: int
    total_bytes: int
    error_message: str
    error_reason: str
    quiesce: bool
    cancel_requested: bool
    attempt: int
    phase: str
    rate_bytes_per_second: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    priority: int = 0
    not_before: datetime | None = None
    admitted_at: datetime | None = None
    policy_id: str = ""
    policy_run_id: str = ""
    retry_of: str = ""
    exclude_disks: tuple[str, ...] = ()
    datastores: tuple[str, ...] = ()
    consistency: str = ""
    consistency_note: str = ""
    alert: str = ""
    disks: tuple[JobDisk, ...] = field(default=())

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that is done to restore points: a row of `operations`. Sizes in bytes.

    Attributes:
        operation_id: `{kind}-{vm or scope}-{YYYYMMDDhhmmss}`.
        kind: One of `OPERATION_KINDS`.
        vm_context_id: The VM that no other job may touch meanwhile; empty for none.
        backup_id: The restore point that it is about; empty for none.
        arguments: What was asked for; JSON values.
        result: What was done, as far as it was; JSON values.
    """

    operation_id: str
    kind: str
    status: str
    vm_context_id: str
    vm_name: str
    backup_id: str
    repository_id: str
    policy_id: str
    arguments: dict[str, Any]
    result: dict[str, Any]
    error_message: str
    error_reason: str
    cancel_requested: bool
    attempt: int
    phase: str
    done_bytes: int
    total_bytes: int
    rate_bytes_per_second: int
    priority: int
    retry_of: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    admitted_at: datetime | None

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL
