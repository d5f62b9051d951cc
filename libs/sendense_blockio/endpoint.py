"""Where a disk is served: an export of an NBD server behind a Unix socket or a TCP port."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

NBD_PORT = 10809
"""The port that IANA gave to NBD."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One export; make it with `unix` or `tcp`.

    Attributes:
        export_name: the export; empty for the server's default.
        socket_path: the Unix socket, or None for TCP.
        host: the TCP host, or None for a Unix socket.
        port: the TCP port.
        read_only: a promise not to write; such an endpoint is refused as a target.
    """

    export_name: str
    socket_path: Path | None = None
    host: str | None = None
    port: int = NBD_PORT
    read_only: bool = False

    def __post_init__(self) -> None:
        if (self.socket_path is None) == (self.host is None):
            raise ValueError("an endpoint has either a Unix socket or a TCP host")

    @classmethod
    def unix(cls, socket_path: Path, export_name: str = "", *, read_only: bool = False) -> Self:
        """Returns an export behind a Unix socket."""
        return cls(export_name, socket_path=socket_path, read_only=read_only)

    @classmethod
    def tcp(cls, host: str, port: int = NBD_PORT, export_name: str = "", *, read_only: bool = False) -> Self:
        """Returns an export behind a TCP port."""
        return cls(export_name, host=host, port=port, read_only=read_only)

    def __str__(self) -> str:
        place = str(self.socket_path) if self.socket_path is not None else f"{self.host}:{self.port}"
        return f"export {self.export_name!r} at {place}"
