"""Settings of the repository service, from the environment with the prefix `SENDENSE_REPOSITORY_`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings


class RepositorySettings(ServiceSettings):
    """What the repository service is told.

    Attributes:
        default_root: Root of the repository `local`; empty means `backups` in the state directory. Packaged
            installations set `/var/lib/sendense/backups`.
        reserve_bytes: Room of each repository's file system that is never used for backups.
        verify_bytes_per_second: The most that a verification reads a second that names no rate, as scheduled ones do;
            0 for no limit.
    """

    model_config = SettingsConfigDict(env_prefix="SENDENSE_REPOSITORY_", frozen=True, extra="ignore")

    default_root: Path | None = None
    reserve_bytes: int = Field(default=256 << 20, ge=0)
    verify_bytes_per_second: int = Field(default=0, ge=0)

    @property
    def local_root(self) -> Path:
        """The absolute root of the repository `local`."""
        return (self.default_root or self.root / "backups").absolute()

    @property
    def work_dir(self) -> Path:
        """Folder for the sockets of merges; its path is as short as that of the services' sockets."""
        return self.run_dir / "merge"
