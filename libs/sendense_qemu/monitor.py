"""The QMP connection to a qemu-storage-daemon: one command at a time or many, each with a deadline.

What always holds: a connection that was lost is made again at the next command (the daemon takes one client after
the other); what a command did when its connection was lost is unknown, so it is not repeated here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient, QMPError
from qemu.qmp.protocol import Runstate
from qemu.qmp.qmp_client import ExecuteError

from sendense_qemu.errors import StorageDaemonError

COMMAND_SECONDS = 30.0
MAX_SOCKET_PATH = 107
"""Bytes in a Unix socket's address (unix(7)), without the closing NUL."""


class MonitorLostError(StorageDaemonError):
    """The connection broke while the command ran: whether it was carried out is not known."""


class Monitor:
    """A QMP connection; not connected before `connect` or the first command."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self._client = _quiet_client()
        self._lock = asyncio.Lock()

    async def connect(self, seconds: float = COMMAND_SECONDS) -> None:
        """Connects if it is not connected.

        Args:
            seconds: How long to wait for the daemon's greeting.

        Raises:
            MonitorLostError: Nobody answers on the socket in that time.
        """
        async with self._lock:
            if self._client.runstate == Runstate.RUNNING:
                return
            await self._drop()
            self._client = _quiet_client()
            try:
                async with asyncio.timeout(seconds):
                    await self._client.connect(str(self.socket_path))
            except (ConnectError, TimeoutError) as error:
                raise MonitorLostError("connect", f"{self.socket_path}: {error or 'no answer'}") from error

    async def execute(self, command: str, arguments: Mapping[str, object] | None) -> Any:
        """Runs one command.

        Returns:
            What the daemon answers.

        Raises:
            StorageDaemonError: It refused, or did not answer within 30 s.
            MonitorLostError: The connection broke.
        """
        await self.connect()
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise StorageDaemonError(command, str(error)) from error
        except TimeoutError as error:
            raise StorageDaemonError(command, f"no answer within {COMMAND_SECONDS:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLostError(command, str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Lets the connection go; no error when it is gone."""
        async with self._lock:
            await self._drop()

    async def _drop(self) -> None:
        # disconnect() raises whatever ended the connection; it is over either way
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()


def _quiet_client() -> QMPClient:
    """The library logs each error and raises it as well; a socket that is not there yet is no news to anybody."""
    client = QMPClient("storage-daemon")
    client.logger.setLevel(logging.CRITICAL)
    return client


def check_socket_path(path: Path) -> None:
    """Refuses a path that does not fit a Unix socket's address.

    Raises:
        StorageDaemonError: It is longer than 107 bytes.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise StorageDaemonError("start", f"{path} is longer than a Unix socket's {MAX_SOCKET_PATH} bytes")


def listener_pid(socket_path: Path) -> int:
    """Returns the process that listens on a Unix socket, told by the kernel (SO_PEERCRED).

    Raises:
        OSError: Nobody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(COMMAND_SECONDS)
        sock.connect(str(socket_path))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
