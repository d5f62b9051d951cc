"""Reaching a lab's server over its socket, and running one as a process of one's own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sendense_lab.errors import LabError, ServerNotRunningError

READY_SECONDS = 30.0
STOP_SECONDS = 60.0
COMMAND_SECONDS = 600.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lab", timeout=COMMAND_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class LabServer:
    """The server of one home: asked by commands, and run as a process of one's own where that is wanted.

    Attributes:
        home: The `SENDENSE_HOME` of that server.
        root: `home/lab`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = (home / "lab").resolve()
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, home: Path, **environment: str) -> Self:
        """Starts `sendense-lab serve` in a home and waits until it is ready.

        Args:
            home: Its SENDENSE_HOME; a short path, for Unix sockets.
            environment: Further variables, such as SENDENSE_LAB_KEEP_SNAPSHOTS="1".

        Raises:
            LabError: It ended, or was not ready in time; the message holds what it logged.
        """
        client = cls(home)
        client.restart(**environment)
        return client

    def restart(self, **environment: str) -> None:
        """Starts this client's own server again (after `stop` or `kill`)."""
        self.root.mkdir(parents=True, exist_ok=True)
        log = self.root / "serve.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sendense_lab.main", "serve"],
                env=os.environ | {"SENDENSE_HOME": str(self.home)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.command("info")
            except ServerNotRunningError as err:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise LabError(f"The lab did not start: {log.read_text(errors='replace')}") from err
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Ends this client's own server in order (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self, command: str, /, **arguments: object) -> dict[str, Any]:
        """Has the server do something.

        Args:
            command: Its name, as `vm/list`.
            arguments: As the command takes them.

        Returns:
            The command's JSON.

        Raises:
            ServerNotRunningError: No server answers.
            LabError: The command failed; with the server's reason, message and help.
        """
        path = self.root / "lab.sock"
        connection = _UnixConnection(path)
        try:
            connection.request("POST", f"/{command}", json.dumps(arguments), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException) as err:
            raise ServerNotRunningError(str(path)) from err
        finally:
            connection.close()
        if response.status != http.client.OK:
            error = body["error"]
            raise LabError(error["message"], reason=error["reason"], help=error["help"])
        return body
