"""The fixtures of the engine's tests."""

from blockio_servers import nbd_servers, tcp_port

__all__ = ["nbd_servers", "tcp_port"]
