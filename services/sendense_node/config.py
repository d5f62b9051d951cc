"""Settings of a node."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings

SOURCE_ROOT = Path(__file__).resolve().parents[2]


class NodeSettings(ServiceSettings):
    """What `sendense-node` must know."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_NODE_", frozen=True, extra="ignore", populate_by_name=True)

    procfile: Path = SOURCE_ROOT / "deploy" / "Procfile"
    ready_seconds: float = Field(default=90.0, description="How long the processes get to become ready.")
    agent_id: str = Field(default="lab", validation_alias="SENDENSE_AGENT_ID")

    @property
    def pid_file(self) -> Path:
        """Process id of the running `up`, locked by it for as long as it lives."""
        return self.run_dir / "node.pid"

    @property
    def log_dir(self) -> Path:
        """One log file a process."""
        return self.root / "log"

    @property
    def endpoint_file(self) -> Path:
        """Address of the gateway; there while it listens."""
        return self.root / "endpoint"

    @property
    def admin_token_file(self) -> Path:
        """The administrator's token (0600)."""
        return self.root / "admin.token"
