"""Settings of the agent, read once in `main`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings

_AGENT_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class AgentSettings(ServiceSettings):
    """What the agent must know. Environment prefix: `SENDENSE_AGENT_`.

    Attributes:
        id: The enrolled agent; lower-case letters, digits and dashes.
        tunnel: `host:port` of the tunnel; empty means the one on this machine (its port is in `run/tunnel.port`).
        tunnel_host_key: File with the tunnel's SSH public host key, pinned.
        lanes: SSH connections for data; 0 follows the number of cores.
        reader_connections: Connections that the https reader uses for one disk.
    """

    model_config = SettingsConfigDict(env_prefix="SENDENSE_AGENT_", frozen=True, extra="ignore")

    id: str = "lab"
    tunnel: str = ""
    tunnel_host_key: Path | None = None
    lanes: int = Field(default=0, ge=0, le=32)
    reader_connections: int = Field(default=4, ge=1, le=16)

    @field_validator("id")
    @classmethod
    def _is_agent_id(cls, value: str) -> str:
        if not _AGENT_ID.fullmatch(value):
            raise ValueError(f"'{value}' is no agent id: lower-case letters, digits and dashes, at most 63")
        return value

    @property
    def directory(self) -> Path:
        """Where the agent's key and its vCenters' file lie."""
        return self.root / "agent"

    @property
    def key_file(self) -> Path:
        """The agent's SSH key (0600); its public half lies beside it, with `.pub`."""
        return self.directory / "id_ed25519"

    @property
    def vcenters_file(self) -> Path:
        """The vCenters and their accounts (0600)."""
        return self.directory / "vcenters.json"

    @property
    def host_key_file(self) -> Path:
        """The pinned host key of the tunnel."""
        return self.tunnel_host_key or self.root / "tunnel" / "host_key.pub"

    @property
    def sockets_dir(self) -> Path:
        """Private directory of the agent's own sockets."""
        return self.run_dir / "agent"

    @property
    def lane_count(self) -> int:
        """Number of SSH connections for data."""
        return self.lanes or max(1, min(4, (os.cpu_count() or 1) // 2))

    def socket(self, service: str) -> Path:
        """Returns the Unix socket of the agent's gRPC server, which only the tunnel's control connection reaches."""
        return self.sockets_dir / f"{self.id}.sock" if service == "agent" else super().socket(service)

    def tunnel_address(self) -> tuple[str, int]:
        """Returns where to dial; read anew each time, because a co-located tunnel may come back on another port.

        Raises:
            OSError: No address is set and no tunnel runs on this machine.
            ValueError: The address is not `host:port`.
        """
        if self.tunnel:
            host, _, port = self.tunnel.rpartition(":")
            return host.strip("[]"), int(port)
        return "127.0.0.1", int((self.run_dir / "tunnel.port").read_text())
