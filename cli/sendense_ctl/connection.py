"""The way to the gateway, as `sendense_ctl.configuration` says; `sendense_client` does the calling."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import stamina.instrumentation

from sendense_client import Client
from sendense_ctl import configuration
from sendense_ctl.configuration import ConfigurationError


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
        """Opens a channel that sends who we are, repeats what nobody answered, and raises `SendenseError`."""
        # Its default is a line on standard output for each repetition, in the middle of a command's JSON.
        stamina.instrumentation.set_on_retry_hooks(())
        return Client(self.endpoint, self.token, ca_file=self.ca_file).channel

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns a call's metadata, for calls beside the channel: who we are, and an id to find it by in the logs."""
        return (("authorization", f"Bearer {self.token}"), ("x-request-id", str(uuid.uuid4())))

    def call(self, method: Any, request: Any, timeout: float = 60.0) -> Any:
        """Calls an RPC of a stub made on `channel()` with a deadline in seconds."""
        return method(request, timeout=timeout)


def open_gateway() -> Gateway:
    """Returns the configured gateway.

    Raises:
        ConfigurationError: Says which of address, certificate and token is missing, and where it was looked for.
    """
    settings = configuration.current()
    endpoint = settings.endpoint.value
    if not endpoint:
        raise ConfigurationError(
            f"no gateway is known: no option, no SENDENSE_ENDPOINT, nothing in {settings.file} and no node in "
            f"{settings.home.value}",
            "Run `make up` here, or name one: sendense-ctl --endpoint https://host:port …",
        )
    if urlsplit(endpoint).scheme not in ("https", "http") or not urlsplit(endpoint).hostname:
        raise ConfigurationError(
            f"{endpoint!r} is no address of a gateway ({settings.endpoint.origin})", "It is https://host:port."
        )
    if not settings.token_file.value:
        raise ConfigurationError(
            f"no token is known for {endpoint}",
            "Put your token into a file of mode 0600 and name it: SENDENSE_TOKEN_FILE, or --token-file.",
        )
    ca_file = Path(settings.ca_file.value) if settings.ca_file.value else None
    if ca_file is not None and not ca_file.is_file():
        raise ConfigurationError(f"{ca_file} is no certificate ({settings.ca_file.origin})", "Name the right file.")
    return Gateway(endpoint=endpoint, ca_file=ca_file, token=_token(Path(settings.token_file.value)))


def _token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(
            f"the token cannot be read: {path}: {error.strerror}", "Name a file that you may read: --token-file."
        ) from error
