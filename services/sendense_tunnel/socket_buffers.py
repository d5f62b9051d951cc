"""Unix sockets with large buffers: fewer, larger moves through the kernel are measurably faster."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

BUFFER_BYTES = 1 << 20
"""Wanted buffer of a socket; the kernel caps it at net.core.wmem_max."""

_SO_SNDBUFFORCE = 32


async def connected_unix_socket(path: Path) -> socket.socket:
    """Returns a socket connected to `path`, with a large send buffer (beyond the limit where privileges allow).

    Raises:
        OSError: Nobody listens there.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(0)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        with contextlib.suppress(PermissionError):
            connected.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        await asyncio.get_running_loop().sock_connect(connected, str(path))
    except BaseException:
        connected.close()
        raise
    return connected
