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
        jobs_at_once: Backups that this process runs at the same time.
        retry_seconds: How long a step repeats a call that failed for a passing reason before the step fails.
        release_seconds: How long an ended job waits for its resources to be given back; what is left then is kept as a
            lease and given back by the sweeper.
        stall_seconds: A capture that reports nothing for so long is broken off and resumed.
        capture_resumes: How often in a row a capture is resumed without a single batch of progress in between.
        resume_pause_seconds: Pause before a capture that broke off goes on.
        sweep_seconds: Pause between two rounds of the sweeper.
        max_attempts: Executions of a job after which it is failed instead of being recovered once more.
        max_snapshots: A VM with more snapshots than this is refused: a deep chain slows it and may break.
        min_datastore_free_bytes: A VM on a datastore with less room is refused: a growing snapshot stops VMs.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="SENDENSE_BACKUP_")

    default_repository: str = "local"
    jobs_at_once: int = Field(default=5, ge=1)
    retry_seconds: float = Field(default=60.0, gt=0)
    release_seconds: float = Field(default=60.0, gt=0)
    stall_seconds: float = Field(default=120.0, gt=0)
    capture_resumes: int = Field(default=3, ge=0)
    resume_pause_seconds: float = Field(default=1.0, ge=0)
    sweep_seconds: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=20, ge=1)
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
