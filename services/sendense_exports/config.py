"""Settings of the exports service and of nbdd; both read the same ones, so that they meet.

Environment: `SENDENSE_HOME` and `SENDENSE_EXPORTS_…`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings


class ExportsSettings(ServiceSettings):
    """Where the configuration lies and what may be served.

    Attributes:
        config_file: nbd-server.conf; empty: `$SENDENSE_HOME/nbd/nbd-server.conf`.
        roots: Folders that images lie below, separated by colons; empty: `$SENDENSE_HOME/backups`. The directories of
            registered repositories need not be named.
        device_pattern: Regular expression for whole paths of block devices that may be served.
        apply_seconds: How long the service waits for nbdd to apply a change.
        lease_seconds: How long an export stays without a sign of life: its holder asks for it again, a client is
            connected, or its image is written to.
        sweep_seconds: How often expired leases are looked for.
        tcp_listen: Where nbdd forwards TCP connections from to the daemon's socket: empty for nowhere, `host:port`, or
            `config` for `listenaddr` and `port` of the main configuration file. NBD has no authentication: whoever
            reaches the address reads every export and writes every writable one. Keep it to a trusted network, or put
            something that authenticates in front of it; agents come through the tunnel, which does.
        tcp_connections: The most connections that are forwarded at the same time.
        restart_pause_seconds: The longest pause before a daemon that keeps dying is started again.
        daemon_memory_mib: The most memory that qemu-storage-daemon may use for data, in MiB; 0 for no limit. Beyond it
            a request fails, or the daemon ends and is started again; the machine's other processes go on.
    """

    model_config = SettingsConfigDict(env_prefix="SENDENSE_EXPORTS_")

    config_file: Path | None = None
    roots: str = ""
    device_pattern: str = "/dev/vd[b-z]+"
    apply_seconds: float = Field(default=10.0, gt=0)
    lease_seconds: float = Field(default=6 * 3600.0, gt=0)
    sweep_seconds: float = Field(default=60.0, gt=0)
    tcp_listen: str = ""
    tcp_connections: int = Field(default=64, ge=1)
    restart_pause_seconds: float = Field(default=0.5, ge=0)
    daemon_memory_mib: int = Field(default=4096, ge=0)

    @property
    def conf_file(self) -> Path:
        """The main configuration file."""
        return self.config_file.absolute() if self.config_file else self.root / "nbd" / "nbd-server.conf"

    @property
    def conf_dir(self) -> Path:
        """Where the service writes one file for each export."""
        return self.conf_file.parent / "conf.d"

    @property
    def generation_file(self) -> Path:
        """The number of the last change that the service made."""
        return self.conf_file.parent / "generation"

    @property
    def force_dir(self) -> Path:
        """Names of exports whose clients nbdd shall cut off."""
        return self.conf_file.parent / "force.d"

    @property
    def status_file(self) -> Path:
        """What nbdd tells."""
        return self.conf_file.parent / "status.json"

    @property
    def pid_file(self) -> Path:
        """Holds nbdd's process id, and its lock."""
        return self.conf_file.parent / "nbdd.pid"

    @property
    def nbd_socket(self) -> Path:
        """Where qemu-storage-daemon listens for NBD clients."""
        return self.run_dir / "nbd.sock"

    @property
    def qmp_socket(self) -> Path:
        """Where qemu-storage-daemon takes nbdd's commands."""
        return self.run_dir / "nbdd.qmp"

    @property
    def daemon_log(self) -> Path:
        """What qemu-storage-daemon prints."""
        return self.root / "log" / "qemu-storage-daemon.log"

    @property
    def roots_file(self) -> Path:
        """Directories of registered repositories, one a line, kept by the service for nbdd (`roots.py`)."""
        return self.conf_file.parent / "roots"

    @property
    def image_roots(self) -> tuple[Path, ...]:
        """The folders of the setting `roots`."""
        return tuple(Path(root) for root in self.roots.split(":") if root) or (self.root / "backups",)
