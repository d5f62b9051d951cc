"""A link between two Unix sockets that can be cut, go silent or become a trickle after a number of bytes."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import threading
import time
from pathlib import Path


class Fault(enum.Enum):
    """What happens to the link."""

    CUT = "cut"
    BLACK_HOLE = "black hole"
    TRICKLE = "trickle"


class BadLink:
    """Listens at `path` and leads every connection to `to`; one thread, which `close` ends.

    Args:
        path: Where clients connect.
        to: Where the server listens.
    """

    TRICKLE_BYTES = 64
    TRICKLE_SECONDS = 0.05

    def __init__(self, path: Path, to: Path) -> None:
        self._to = str(to)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._left: int | None = None
        self._fault = Fault.CUT
        self._broken = False
        self._lock = threading.Lock()
        self._wake, self._waker = socket.socketpair()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="bad-link")
        self._thread.start()

    def arm(self, fault: Fault | None, after_bytes: int = 0) -> None:
        """Drops all connections and repairs the link; `fault` strikes after so many bytes of both directions."""
        with self._lock:
            self._drop()
            self._broken = False
            self._left = None if fault is None else after_bytes
            self._fault = fault or Fault.CUT
        self._waker.send(b"!")

    @property
    def struck(self) -> bool:
        """Whether the fault has happened since it was armed."""
        return self._broken

    def close(self) -> None:
        """Ends everything."""
        self._ended = True
        self._waker.send(b"!")
        self._thread.join()
        self._drop()
        for each in (self._listener, self._wake, self._waker):
            each.close()

    def _drop(self) -> None:
        for one in list(self._pairs):
            one.close()
        self._pairs.clear()

    def _run(self) -> None:
        while not self._ended:
            with self._lock:
                silent = self._broken and self._fault is Fault.BLACK_HOLE
                watched = [self._listener, self._wake, *(() if silent else self._pairs)]
            try:
                ready, _, _ = select.select(watched, [], [], 1.0)
            except (OSError, ValueError):
                continue  # a connection was dropped meanwhile
            with self._lock:
                for each in ready:
                    self._serve(each)
            if self._broken and self._fault is Fault.TRICKLE:
                time.sleep(self.TRICKLE_SECONDS)

    def _serve(self, ready: socket.socket) -> None:
        if ready is self._wake:
            ready.recv(64)
        elif ready is self._listener:
            client, _ = ready.accept()
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._to)
            except OSError:
                client.close()
                server.close()
                return
            self._pairs[client], self._pairs[server] = server, client
        elif ready in self._pairs:
            self._pass_on(ready, self._pairs[ready])

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        size = self.TRICKLE_BYTES if self._broken else 1 << 16
        if not self._broken and self._left is not None:
            if self._left == 0:
                self._break()
                return
            size = min(size, self._left)
        try:
            data = one.recv(size)
            if data:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            with contextlib.suppress(KeyError):
                del self._pairs[one], self._pairs[other]
            one.close()
            other.close()
        elif self._left is not None and not self._broken:
            self._left -= len(data)

    def _break(self) -> None:
        self._broken = True
        if self._fault is Fault.CUT:
            self._drop()
