"""What the catalogue knows of repositories, layers and restore points, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from sendense_repository.layout import LayerFiles
from sendense_repository.options import RepositoryOptions

BackupType = Literal["full", "incremental"]
LayerState = Literal["partial", "sealed"]
PointState = Literal["committed", "deleting", "deleted"]


@dataclass(frozen=True, slots=True)
class Holder:
    """For which job, and for which execution of it, a mutation is made."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """A registered repository; sizes in bytes as last looked at."""

    repository_id: str
    name: str
    repository_type: str
    path: Path
    enabled: bool
    total_size_bytes: int
    available_size_bytes: int
    created_at: datetime
    updated_at: datetime
    options: RepositoryOptions = field(default_factory=RepositoryOptions)


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer; see the protos' `Layer` for the fields that it shares.

    Attributes:
        attempt: The attempt of the job that made it; its journal is bound to it.
        point_id: The restore point that holds it, None for none.
        relative_path: Of the sealed image below the repository's root.
        estimated_bytes: Upper bound of what its job writes.
        areas_digest: Of the fixed areas, empty before.
        journal_digest: BLAKE3 over the whole journal (its last checksum), empty before the seal.
        metadata_digest: Of the image's metadata, empty before the seal.
        digest: Of the sidecar, empty before the seal.
        poison: Why it is unusable for good, empty when it is not.
    """

    layer_id: str
    repository_id: str
    vm_uuid: str
    disk_id: int
    disk_identity: str
    backup_type: BackupType
    backup_id: str
    attempt: int
    point_id: str | None
    parent_layer_id: str | None
    chain_id: str
    relative_path: str
    virtual_size_bytes: int
    estimated_bytes: int
    change_id: str
    state: LayerState
    areas_digest: str
    area_count: int
    area_bytes: int
    journal_digest: str
    metadata_digest: str
    digest: str
    reason: str
    stored_bytes: int
    poison: str
    created_at: datetime
    sealed_at: datetime | None
    deleted_at: datetime | None

    @property
    def name(self) -> str:
        """Name of the sealed image's file."""
        return self.relative_path.rpartition("/")[2]

    def files(self, root: Path) -> LayerFiles:
        """Returns its files below the repository's root."""
        return LayerFiles.of(root, self.relative_path)


@dataclass(frozen=True, slots=True)
class PointRecord:
    """A restore point.

    Attributes:
        sequence: Its place in the order of the VM's points.
        previous_backup_id: The point before it, empty for the first.
        hardware_json: The VM's hardware, as the agent described it.
        digest: Of the points file.
    """

    backup_id: str
    repository_id: str
    vm_uuid: str
    vm_name: str
    vm_context_id: str
    sequence: int
    previous_backup_id: str
    hardware_json: str
    digest: str
    state: PointState
    snapshot_at: datetime | None
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Keeps a restore point as it is until `expires_at`."""

    backup_id: str
    holder: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer with the repository that it lies in."""

    layer: LayerRecord
    repository: RepositoryRecord
