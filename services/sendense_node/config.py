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
    services: str = Field(default="", description="Processes of this machine, separated by blanks; empty for all.")
    address: str = Field(default="", description="This machine's address for the others; empty when there are none.")
    others: dict[str, str] = Field(
        default_factory=dict, description="Addresses of the other machines, with the processes of each."
    )

    def runs(self, name: str) -> bool:
        """Tells whether a process of the Procfile runs on this machine."""
        return not self.services or name in self.services.split()

    @property
    def machine_ca(self) -> Path:
        """Directory of the CA of the machines' certificates, on the machine of the access service."""
        return self.root / "machines-ca"

    @property
    def machine_certificate(self) -> Path:
        """Directory of this machine's certificate."""
        return self.mtls_dir or self.root / "mtls"

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
