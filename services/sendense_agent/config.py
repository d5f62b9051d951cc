"""Settings of the agent, read once in `main`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from sendense_agent.openssh import openssh_client
from sendense_agent.readers.choice import ReaderChoice, configured
from sendense_agent.readers.https import HTTPS
from sendense_agent.readers.nfc import NFC
from sendense_agent.readers.vddk import VDDK
from sendense_blockio.pace import Pace
from sendense_rpc.settings import ServiceSettings

_AGENT_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class AgentSettings(ServiceSettings):
    """What the agent must know. Environment prefix: `SENDENSE_AGENT_`.

    Attributes:
        id: The enrolled agent; lower-case letters, digits and dashes.
        tunnel: `host:port` of the tunnel; empty means the one on this machine (its port is in `run/tunnel.port`).
        tunnel_host_key: File with the tunnel's SSH public host key, pinned.
        enrollment: File that the agent joins a node from; `agent/enrollment.json` below the state directory unless set.
        lanes: SSH connections for data; 0 follows the number of cores.
        carrier: What carries the lanes: OpenSSH's client (`openssh`, costs less), `asyncssh`, or `auto`: OpenSSH
            where it is installed. Control is always asyncssh's.
        data_path: `tunnel`, or `direct` for an agent on the node's own machine and under its account: data goes to the
            NBD server's Unix socket, not through SSH. Control and leases are the same; the copy and its proofs too.
        bandwidth_mib: MiB a second that all copies of this agent may read together; 0 for no limit.
        reader: `auto`, or the one reader that is used: `vddk`, `https` or `nfc`. `auto` takes `vddk` first where it is
            installed and the VM runs, and passes over a reader that cannot read the disk.
        reader_of_vm: The same for single VMs, by name or instance uuid: `{"web": "https"}`.
        reader_connections: Connections that the https reader uses for one disk.
        vddk_plugin: nbdkit's vddk plugin, by name or path.
        vddk_libdir: Directory of VMware's library (`vmware-vix-disklib-distrib`).
        vddk_transports: Its transports, best first: `nbdssl`, `nbd`, `hotadd`, `san`.
        vddk_connections: Connections that the vddk reader uses for one disk; each is an NFC session at the host.
        nfc_plugin: nbdkit's nfc plugin, by name or path.
        disks_at_once: Disks that are read at a time on one host, and on one datastore; further ones wait.
        snapshots_at_once: Snapshots that are made or removed at a time on one host, and on one datastore.
    """

    model_config = SettingsConfigDict(env_prefix="SENDENSE_AGENT_", frozen=True, extra="ignore")

    id: str = "lab"
    tunnel: str = ""
    tunnel_host_key: Path | None = None
    enrollment: Path | None = None
    lanes: int = Field(default=0, ge=0, le=32)
    carrier: Literal["auto", "openssh", "asyncssh"] = "auto"
    data_path: Literal["tunnel", "direct"] = "tunnel"
    bandwidth_mib: int = Field(default=0, ge=0, le=1 << 20)
    reader: Literal["auto", "vddk", "https", "nfc"] = "auto"
    reader_of_vm: dict[str, Literal["auto", "vddk", "https", "nfc"]] = Field(default_factory=dict)
    reader_connections: int = Field(default=4, ge=1, le=16)
    vddk_plugin: str = "vddk"
    vddk_libdir: Path | None = None
    vddk_transports: str = Field(default="nbdssl:nbd", pattern=r"^[a-z]+(:[a-z]+)*$")
    vddk_connections: int = Field(default=2, ge=1, le=8)
    nfc_plugin: str = "nfc"
    disks_at_once: int = Field(default=8, ge=1, le=50)
    snapshots_at_once: int = Field(default=4, ge=1)

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
    def fence_file(self) -> Path:
        """The newest attempt of each job."""
        return self.directory / "attempts.json"

    @property
    def vcenters_file(self) -> Path:
        """The vCenters and their accounts (0600)."""
        return self.directory / "vcenters.json"

    @property
    def enrollment_file(self) -> Path:
        """What the agent joins a node from; removed when it has."""
        return self.enrollment or self.directory / "enrollment.json"

    @property
    def node_file(self) -> Path:
        """What the agent was told of its node when it joined."""
        return self.directory / "node.json"

    @property
    def pinned_key_file(self) -> Path:
        """The tunnel's host key as the enrolment file had it."""
        return self.directory / "tunnel_host_key.pub"

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

    @property
    def openssh_key(self) -> Path | None:
        """The key file for OpenSSH's client, where it is to carry the lanes; None leaves them to asyncssh."""
        wanted = self.carrier == "openssh" or (self.carrier == "auto" and openssh_client() is not None)
        return self.key_file if wanted else None

    @property
    def direct_socket(self) -> Path | None:
        """The NBD server's socket, when data is not to go through the tunnel."""
        return self.run_dir / "nbd.sock" if self.data_path == "direct" else None

    @property
    def pace(self) -> Pace | None:
        """The limit that all copies share."""
        return Pace(self.bandwidth_mib << 20) if self.bandwidth_mib else None

    def reader_choice(self) -> ReaderChoice:
        """Returns the readers with their settings, and which of them is wanted."""
        vddk = configured(
            VDDK,
            plugin=self.vddk_plugin,
            connections=self.vddk_connections,
            libdir=str(self.vddk_libdir or ""),
            transports=self.vddk_transports,
        )
        kinds = (
            vddk,
            configured(HTTPS, connections=self.reader_connections),
            configured(NFC, plugin=self.nfc_plugin),
        )
        return ReaderChoice(kinds, self.reader, self.reader_of_vm)

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
