"""The way to the gateway: where it is, how it is trusted, who we are.

Each of the three comes from the environment (`SENDENSE_ENDPOINT`, `SENDENSE_CA`, `SENDENSE_TOKEN_FILE`), else from the
state directory of a node on this machine (`SENDENSE_HOME`, default `./var`). A token is never taken from the command
line, where every user of the machine could read it.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc


class NotConfiguredError(Exception):
    """The gateway's address or the token is not known."""

    def __init__(self, message: str, help_: str) -> None:
        super().__init__(message)
        self.help = help_


@dataclass(frozen=True)
class Gateway:
    """The gateway that commands talk to.

    Attributes:
        endpoint: `https://host:port`.
        ca_file: Certificate (PEM) that the gateway's must descend from; None trusts the system's.
        token: Bearer token.
    """

    endpoint: str
    ca_file: Path | None
    token: str

    def channel(self) -> grpc.Channel:
        """Opens a gRPC channel. Calls need `metadata()`."""
        parts = urlsplit(self.endpoint)
        target = f"{parts.hostname}:{parts.port or 443}"
        if parts.scheme == "http":
            return grpc.insecure_channel(target)
        roots = self.ca_file.read_bytes() if self.ca_file else None
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns a call's metadata: who we are, and an id by which the call is found in the logs."""
        return (("authorization", f"Bearer {self.token}"), ("x-request-id", str(uuid.uuid4())))

    def call(self, method: Any, request: Any, timeout: float = 60.0) -> Any:
        """Calls an RPC of a stub made on `channel()` with our identity and a deadline in seconds."""
        return method(request, metadata=self.metadata(), timeout=timeout)


def open_gateway() -> Gateway:
    """Returns the configured gateway.

    Raises:
        NotConfiguredError: Says which of address, certificate and token is missing, and where it was looked for.
    """
    home = Path(os.environ.get("SENDENSE_HOME", "var"))
    endpoint = os.environ.get("SENDENSE_ENDPOINT") or _read(
        home / "endpoint", "no gateway is known", "Run `make up`, or set SENDENSE_ENDPOINT to its https address."
    )
    token_file = Path(os.environ.get("SENDENSE_TOKEN_FILE") or home / "admin.token")
    token = _read(token_file, "no token is known", "Set SENDENSE_TOKEN_FILE to a file that holds your token.")
    ca_file = Path(os.environ["SENDENSE_CA"]) if "SENDENSE_CA" in os.environ else home / "tls" / "ca.crt"
    return Gateway(endpoint=endpoint, ca_file=ca_file if ca_file.exists() else None, token=token)


def _read(path: Path, problem: str, help_: str) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NotConfiguredError(f"{problem}: {path} cannot be read ({error.strerror})", help_) from error
