"""The gateway's settings; env prefix `SENDENSE_GATEWAY_`."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from sendense_rpc.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """Where the gateway listens and with which certificate.

    Attributes:
        listen: `address:port` (IPv6 in brackets); port 0 takes the port of the last run, or a free one.
        tls_cert: PEM file with the certificate chain of a real certificate; empty for the self-made one.
        tls_key: PEM file with its key; set exactly when `tls_cert` is.
        tls_names: Further host names or addresses for the self-made certificate, comma-separated.
        concurrency: Envoy's worker threads.
        log_level: Envoy's log level.
        access_log: Whether each request is logged to standard error, as JSON.
        max_body_bytes: Largest REST request body.
        cors_origins: Origins whose pages may call the API from a browser, comma-separated, such as
            `https://gui.example`; empty for none.
        drain_seconds: How long running requests may go on after SIGTERM.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="SENDENSE_GATEWAY_")

    listen: str = "127.0.0.1:0"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_names: str = ""
    concurrency: int = Field(default=2, ge=1, le=64)
    log_level: str = Field(default="warning", pattern="trace|debug|info|warning|error|critical|off")
    access_log: bool = True
    max_body_bytes: int = Field(default=1 << 20, ge=1 << 10, le=8 << 20)
    cors_origins: str = Field(default="", pattern=r"|https?://[^\s,/*]+(\s*,\s*https?://[^\s,/*]+)*")
    drain_seconds: float = Field(default=5.0, ge=0, le=300)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("SENDENSE_GATEWAY_TLS_CERT and SENDENSE_GATEWAY_TLS_KEY are set together or not at all")
        for file in (self.tls_cert, self.tls_key):
            if file and not os.access(file, os.R_OK):
                raise ValueError(f"SENDENSE_GATEWAY_TLS_CERT and SENDENSE_GATEWAY_TLS_KEY: {file} cannot be read")
        ip_address(self.listen_host)
        if not 0 <= self.listen_port < 1 << 16:
            raise ValueError(f"SENDENSE_GATEWAY_LISTEN: no port {self.listen_port}")
        return self

    @property
    def listen_host(self) -> str:
        """Address to listen on."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        """Port to listen on; 0 for any."""
        return int(self.listen.rpartition(":")[2])

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_origins`."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def state_dir(self) -> Path:
        """Directory of the generated configuration and the last port."""
        return self.root / "gateway"

    @property
    def port_file(self) -> Path:
        """File with the port of the last run."""
        return self.state_dir / "port"

    @property
    def endpoint_file(self) -> Path:
        """File with the gateway's address, such as `https://127.0.0.1:41234`; exists while it listens."""
        return self.root / "endpoint"

    @property
    def tls_dir(self) -> Path:
        """Directory of the self-made CA and certificate."""
        return self.root / "tls"

    @property
    def admin_socket(self) -> Path:
        """Unix socket (0600) of Envoy's own administration."""
        return self.run_dir / "envoy-admin.sock"

    @property
    def pages_socket(self) -> Path:
        """Unix socket of the pages that this process serves itself."""
        return self.run_dir / "gateway-http.sock"

    @property
    def restore_http_socket(self) -> Path:
        """Unix socket of the restore service's downloads; on another machine, `SENDENSE_PEERS` names `restore-http`."""
        return self.run_dir / "restore-http.sock"
