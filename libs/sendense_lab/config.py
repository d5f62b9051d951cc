"""Settings of the lab's server, read once from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

USERNAME = "sendense@lab.local"
"""The one account of the simulated vCenter."""


class LabSettings(BaseSettings):
    """Frozen settings; `SENDENSE_HOME` and `SENDENSE_LAB_*`."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_LAB_", frozen=True, populate_by_name=True)

    home: Path = Field(default=Path("var"), validation_alias="SENDENSE_HOME")
    """Root of all state; the lab keeps to its `lab/` below it."""
    host: str = "127.0.0.1"
    """Address on which the simulated vCenter listens."""
    port: int = 0
    """TCP port; 0 takes the port of the last run if it is free, else any free one."""
    keep_snapshots: bool = False
    """Keep the content of removed snapshots, so that a backup can be compared with it afterwards."""
    kept_snapshots: int = Field(default=200, ge=1)
    """Most contents of removed snapshots that are kept of one VM; the oldest goes."""
    page_areas: int = Field(default=2000, ge=1)
    """Most areas in one answer of QueryChangedDiskAreas, unless `fault set cbt-page-areas` says otherwise."""

    @property
    def root(self) -> Path:
        """The lab's own folder, absolute."""
        return (self.home / "lab").resolve()
