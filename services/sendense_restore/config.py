"""Settings of the restore service, read once in `main`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings


class RestoreSettings(ServiceSettings):
    """`SENDENSE_RESTORE_…`."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_RESTORE_", frozen=True, extra="ignore")

    mount_base: Path | None = Field(
        default=None, description="Directory below which mounts appear; packaged installations use /mnt/sendense."
    )
    max_mounts: int = Field(default=32, ge=1, le=1000, description="Most restore points mounted at once.")
    max_disk_exports: int = Field(default=4, ge=1, le=100, description="Most whole disks kept as files at once.")
    idle_seconds: float = Field(default=3600.0, gt=0, description="A mount that nobody uses is undone after this.")
    max_age_seconds: float = Field(default=86400.0, gt=0, description="A mount is undone after this, used or not.")
    drain_seconds: float = Field(default=30.0, ge=0, description="How long an unmount waits for running downloads.")
    stall_seconds: float = Field(
        default=300.0, gt=0, description="A download whose receiver takes nothing for so long is cut off."
    )
    lease_seconds: int = Field(
        default=900, ge=30, le=86400, description="Lease on a mounted point; renewed at a third."
    )
    mount_timeout_seconds: float = Field(
        default=120.0, gt=0, description="Most time for one file system to be mounted, its journal replayed."
    )

    http_listen: str = Field(
        default="",
        pattern=r"|.+:[0-9]{1,5}",
        description="`address:port` on which a gateway on another machine finds the downloads, over mTLS.",
    )
    backend: Literal["auto", "kernel", "guestfs"] = Field(
        default="auto",
        description="Which back end mounts: auto takes the kernel where it can open all, else guestfs; with guestfs "
        "the host's kernel never reads a guest's file system.",
    )
    guestfs_acceleration: Literal["auto", "kvm", "emulate"] = Field(
        default="auto", description="Whether guestfs' micro-VM runs on KVM; auto tries it once, then emulates."
    )
    guestfs_timeout_seconds: float = Field(
        default=300.0, gt=0, description="Most time for guestfs' micro-VM to start and mount all volumes."
    )

    @property
    def work_root(self) -> Path:
        """Directory of overlays, exports and volumes: one subdirectory a mount."""
        return self.root / "restore"

    @property
    def base(self) -> Path:
        """Directory below which `mount_path`s lie."""
        return (self.mount_base or self.root / "mnt").absolute()

    @property
    def http_socket(self) -> Path:
        """Unix socket of the downloads' HTTP server, which the gateway forwards to."""
        return self.run_dir / "restore-http.sock"
