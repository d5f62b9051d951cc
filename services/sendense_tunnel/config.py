"""Settings of the tunnel, read once in `main`."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings


class TunnelSettings(ServiceSettings):
    """What the tunnel must know. Environment prefix: `SENDENSE_TUNNEL_`.

    Attributes:
        listen: `host:port` for the agents' SSH connections; port 0 takes a free one, found in `port_file`.
    """

    model_config = SettingsConfigDict(env_prefix="SENDENSE_TUNNEL_", frozen=True, extra="ignore")

    listen: str = "127.0.0.1:0"

    @field_validator("listen")
    @classmethod
    def _is_host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"'{value}' is not host:port, such as 0.0.0.0:443")
        return value

    @property
    def listen_host(self) -> str:
        """Address to listen on."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        """TCP port to listen on; 0 for any free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def port_file(self) -> Path:
        """File in which co-located agents find the port that was taken."""
        return self.run_dir / "tunnel.port"

    @property
    def host_key_file(self) -> Path:
        """The SSH host key (0600); its public half lies beside it, with `.pub`."""
        return self.root / "tunnel" / "host_key"

    @property
    def nbd_socket(self) -> Path:
        """Unix socket on which nbdd's qemu-storage-daemon serves the exports."""
        return self.run_dir / "nbd.sock"

    @property
    def agents_dir(self) -> Path:
        """Directory of the sockets that lead to the agents' gRPC servers."""
        return self.run_dir / "agents"
