"""Settings of the backup service; env prefix `SENDENSE_BACKUP_`, read once in `main`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings


class BackupSettings(ServiceSettings):
    """How the backup service works.

    Attributes:
        default_repository: Name of the repository that a start without one uses.
        jobs_at_once: Jobs that run at the same time, over all replicas; they must agree about the limits.
        jobs_per_agent: Of those, how many may use one agent; 0 for no limit of its own.
        jobs_per_repository: How many may use one repository; 0 for no limit of its own.
        jobs_per_datastore: How many may read from one datastore; 0 for no limit of its own.
        retry_seconds: How long a step repeats a call that failed for a passing reason before the step fails.
        release_seconds: How long an ended job waits for its resources to be given back; what is left then is kept as a
            lease and given back by the caretaker.
        stall_seconds: A capture that reports nothing for so long is broken off and resumed.
        capture_resumes: How often in a row a capture is resumed without a single batch of progress in between.
        resume_pause_seconds: Pause before a capture that broke off goes on.
        sweep_seconds: Pause between two rounds of the caretaker.
        sweep_minutes: Pause between two sweeps.
        tick_seconds: Pause between two looks at the policies.
        outage_seconds: How long a running job waits for a database that is away.
        keep_records_days: How long records of ended workflows and sweeps are kept.
        holders_wait_seconds: How long a deletion or consolidation waits for who reads a restore point.
        operation_stall_seconds: How long an operation may be silent before it is given up.
        max_attempts: Executions of a job after which it is failed instead of being recovered once more.
        audit_blocks: Blocks of 64 KiB of each disk that a backup did not copy and that are compared with the chain, by
            chance: a change that change tracking left out is found so.
        audit_share: The same as a share of the disk's blocks, 0 to 1; the larger of both counts. 1 compares all.
        audit_runs: After so many restore points each block of a disk was compared once: with each one the next of so
            many slices is compared whole; more and smaller ones where `audit_slice_bytes` says so. 0 for no slices.
        audit_slice_bytes: The most bytes of a disk in one slice: what an increment of a large disk costs though little
            changed. The largest disk that `audit_runs` still covers is their product.
        max_snapshots: A VM with more snapshots than this is refused: a deep chain slows it and may break.
        min_datastore_free_bytes: A VM on a datastore with less room is refused: a growing snapshot stops VMs.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="SENDENSE_BACKUP_")

    default_repository: str = "local"
    jobs_at_once: int = Field(default=5, ge=1)
    jobs_per_agent: int = Field(default=0, ge=0)
    jobs_per_repository: int = Field(default=0, ge=0)
    jobs_per_datastore: int = Field(default=0, ge=0)
    retry_seconds: float = Field(default=60.0, gt=0)
    release_seconds: float = Field(default=60.0, gt=0)
    stall_seconds: float = Field(default=120.0, gt=0)
    capture_resumes: int = Field(default=3, ge=0)
    resume_pause_seconds: float = Field(default=1.0, ge=0)
    sweep_seconds: float = Field(default=30.0, gt=0)
    sweep_minutes: float = Field(default=15.0, gt=0)
    tick_seconds: float = Field(default=5.0, gt=0)
    outage_seconds: float = Field(default=900.0, ge=0)
    keep_records_days: float = Field(default=30.0, ge=0)
    holders_wait_seconds: int = Field(default=600, ge=0)
    operation_stall_seconds: float = Field(default=1800.0, gt=0)
    max_attempts: int = Field(default=20, ge=1)
    audit_blocks: int = Field(default=256, ge=0)
    audit_share: float = Field(default=0.0, ge=0, le=1)
    audit_runs: int = Field(default=365, ge=0, le=1_000_000)
    audit_slice_bytes: int = Field(default=512 << 20, ge=64 << 20)
    max_snapshots: int = Field(default=30, ge=0)
    min_datastore_free_bytes: int = Field(default=256 << 20, ge=0)

    @property
    def workflow_url(self) -> str:
        """SQLAlchemy URL of the durable workflows' database: an own file beside SQLite, else the catalogue's server."""
        if self.embedded:
            return f"sqlite:///{self.root / 'db' / 'dbos.sqlite'}"
        return "postgresql+psycopg://" + self.database_url.partition("://")[2]

    @property
    def embedded(self) -> bool:
        """Whether the catalogue is the embedded SQLite file."""
        return self.catalogue_url.startswith("sqlite")

    @property
    def executor_lock(self) -> Path:
        """File whose lock makes this the one backup process beside an embedded catalogue."""
        return self.root / "db" / "backup.lock"
