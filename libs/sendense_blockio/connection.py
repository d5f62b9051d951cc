"""One NBD connection of libnbd, over a socket of our own, each wait with a deadline.

The socket is connected here, not by libnbd, to give it large buffers: 60 % of a copy's time is the kernel
moving bytes through sockets, and fewer, larger moves are measurably faster.

Data connections refuse structured replies: a plain reply is either all bytes of a read or an error, so no
server can leave a part of a buffer unset. Only a connection that asks for `base:allocation` uses structured
ones.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import nbd

from sendense_blockio.endpoint import Endpoint
from sendense_blockio.errors import ConnectError, ConnectionLostError, Side, StallError

SOCKET_BUFFER_BYTES = 1 << 20
"""Wanted buffers of a socket: one chunk, so that a request is handed over at once."""

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_CONNECT_RETRY_SECONDS = 0.01
GOODBYE_SECONDS = 1.0
"""How long a server gets to end a connection politely."""

_POLL_MILLISECONDS = 100


def _enlarge_buffers(connected: socket.socket) -> None:
    """Asks for large buffers: beyond the system's limit where privileges allow, else up to it."""
    for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            connected.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
        except PermissionError:
            connected.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER_BYTES)


def _connect_unix(path: str, deadline: float) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(0.0)
        while True:
            try:
                connected.connect(path)
            except BlockingIOError:
                # A Unix socket has no connection in progress: EAGAIN says that the listener's queue is full.
                if time.monotonic() > deadline:
                    raise TimeoutError("the server accepts no connection") from None
                time.sleep(_CONNECT_RETRY_SECONDS)
            else:
                return connected
    except BaseException:
        connected.close()
        raise


def _connect_tcp(host: str, port: int, deadline: float) -> socket.socket:
    connected = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.001))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _connect(endpoint: Endpoint, deadline: float) -> socket.socket:
    if endpoint.socket_path is not None:
        return _connect_unix(str(endpoint.socket_path), deadline)
    return _connect_tcp(endpoint.host or "", endpoint.port, deadline)


class Connection:
    """A negotiated NBD connection; used by one thread at a time.

    Attributes:
        side: which end of the copy it is.
        endpoint: where it leads.
        handle: libnbd's handle; None after `close`.
        size: bytes of the export.
    """

    def __init__(self, side: Side, endpoint: Endpoint, seconds: float, *, meta_context: str | None = None) -> None:
        """Connects and negotiates.

        Args:
            side: which end of the copy it is, for errors.
            endpoint: where to connect.
            seconds: deadline for the whole.
            meta_context: a context for `block_status`, such as `base:allocation`; needs structured replies.

        Raises:
            ConnectError: the server cannot be reached, refuses, or does not answer in time.
        """
        self.side = side
        self.endpoint = endpoint
        self._seconds = seconds
        # A second descriptor of the socket: libnbd closes a handle only when its last reference goes, and the
        # traceback of an error may hold one for long.
        self._line: socket.socket | None = None
        handle = nbd.NBD()
        self.handle: nbd.NBD | None = handle
        deadline = time.monotonic() + seconds
        try:
            handle.set_export_name(endpoint.export_name)
            handle.set_request_structured_replies(meta_context is not None)
            if meta_context is not None:
                handle.add_meta_context(meta_context)
            # Reads fill each buffer or fail, and a failed buffer is never looked at.
            handle.set_pread_initialize(False)
            connected = _connect(endpoint, deadline)
            self._line = connected.dup()
            _enlarge_buffers(connected)
            handle.aio_connect_socket(connected.detach())
            while not handle.aio_is_ready():
                if time.monotonic() > deadline:
                    raise TimeoutError("no end of the negotiation")
                handle.poll(_POLL_MILLISECONDS)
                if handle.aio_is_closed() or handle.aio_is_dead():
                    raise ConnectionResetError("the server refused the export or closed the connection")
            self.size: int = handle.get_size()
            self.fd: int = handle.aio_get_fd()
        except (OSError, nbd.Error) as error:
            self.close()
            raise ConnectError(f"cannot be connected: {error}", side, str(endpoint)) from error

    def require_handle(self) -> nbd.NBD:
        """Returns the handle.

        Raises:
            ConnectionLostError: the connection was closed.
        """
        if self.handle is None:
            raise ConnectionLostError(f"{self.endpoint} was closed", self.side)
        return self.handle

    @property
    def lost(self) -> bool:
        """Whether the connection ended."""
        return self.handle is None or bool(self.handle.aio_is_closed() or self.handle.aio_is_dead())

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Runs the connection until `done`.

        Raises:
            ConnectionLostError: it ended before.
            StallError: it took longer than the deadline given at the beginning.
        """
        handle = self.require_handle()
        deadline = time.monotonic() + self._seconds
        while not done():
            if self.lost:
                raise ConnectionLostError(f"the connection ended during {what}", self.side)
            if time.monotonic() > deadline:
                raise StallError(f"{what} took over {self._seconds:g} s", self.side, self._seconds)
            try:
                handle.poll(_POLL_MILLISECONDS)
            except nbd.Error as error:
                raise ConnectionLostError(f"{what}: {error}", self.side) from error

    def say_goodbye(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Ends the connection politely, then closes it; nothing depends on the server's answer.

        Args:
            seconds: longest wait for requests in flight and for the server to close.
        """
        handle = self.handle
        if handle is not None and not self.lost:
            deadline = time.monotonic() + seconds
            with contextlib.suppress(nbd.Error, OSError):
                handle.aio_disconnect()
                while not self.lost and time.monotonic() < deadline:
                    handle.poll(_POLL_MILLISECONDS)
        self.close()

    def close(self) -> None:
        """Ends the connection at once, for the server too; requests in flight are given up."""
        self.handle = None
        if self._line is not None:
            with contextlib.suppress(OSError):  # the server may have ended it already
                self._line.shutdown(socket.SHUT_RDWR)
            self._line.close()
            self._line = None
