"""The one HTTPS port of the simulated vCenter: a thread serves each connection."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import structlog

from sendense_lab.connection import Connection
from sendense_lab.lab import Lab
from sendense_lab.methods import Methods
from sendense_lab.readfaults import ReadFaults
from sendense_lab.sessions import Sessions

log = structlog.get_logger(__name__)

IDLE_SECONDS = 900


class VcenterServer(ThreadingHTTPServer):
    """Listens, and knows its connections so that it can end them."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], tls: ssl.SSLContext, lab: Lab, methods: Methods, sessions: Sessions
    ) -> None:
        super().__init__(address, Connection)
        self.tls = tls
        self.lab = lab
        self.methods = methods
        self.sessions = sessions
        self.read_faults = ReadFaults(lab, sessions)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        """Accepts a connection; the handshake is left to the connection's own thread."""
        connection, address = self.socket.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(IDLE_SECONDS)
        secured = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections.add(secured)
        return secured, address

    def shutdown_request(self, request: Any) -> None:
        """Forgets a connection that has ended."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Logs; a client that hangs up in the middle is nothing special."""
        log.debug("connection ended", client=str(client_address), error=repr(sys.exception()))

    def close_connections(self) -> None:
        """Cuts every connection, which ends their threads."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it had ended by itself
                continue


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Returns the server's TLS settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
