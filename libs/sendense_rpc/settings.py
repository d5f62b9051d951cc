"""Settings that every process shares: where its state lies and how it names itself.

Each service's `config.py` derives from `ServiceSettings` with its own env prefix; read once in `main`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What a process must know before anything else. `SENDENSE_HOME` is the root of all state on this machine."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    home: Path = Field(default=Path("var"), validation_alias="SENDENSE_HOME")
    log_format: str = Field(default="console", validation_alias="SENDENSE_LOG_FORMAT")
    database_url: str = Field(default="", validation_alias="SENDENSE_DATABASE_URL")

    @property
    def root(self) -> Path:
        """The absolute path of the state directory."""
        return self.home.absolute()

    @property
    def run_dir(self) -> Path:
        """Directory of the Unix sockets."""
        return self.root / "run"

    @property
    def jwks_file(self) -> Path:
        """Public keys that tokens are verified with."""
        return self.root / "keys" / "jwks.json"

    @property
    def revoked_file(self) -> Path:
        """Revoked token ids, written by the access service."""
        return self.root / "keys" / "revoked.json"

    def socket(self, service: str) -> Path:
        """Returns the Unix socket of a service's gRPC server on this machine."""
        return self.run_dir / f"{service}.sock"

    def identity_file(self, service: str) -> Path:
        """Returns the file (0600) that holds the service's workload token."""
        return self.root / "keys" / "identities" / f"{service}.token"

    @property
    def catalogue_url(self) -> str:
        """SQLAlchemy URL of the catalogue: the embedded SQLite file unless `SENDENSE_DATABASE_URL` says otherwise."""
        return self.database_url or f"sqlite+aiosqlite:///{self.root / 'db' / 'sendense.sqlite'}"
