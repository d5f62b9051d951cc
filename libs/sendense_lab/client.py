"""Driving a lab from Python: the commands as methods, and a server of one's own for a test.

with LabClient.start(home) as lab:
    vm = lab.create_vm("web", ["64M:ext4"])
    lab.guest_run("web", share=0.05)
"""

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


class LabClient:
    """Talks to the lab's server of one home; every method is blocking and returns the command's JSON.

    Errors of the server are raised as LabError with its reason, message and help.

    Attributes:
        home: The `SENDENSE_HOME` of that server.
        root: `home/lab`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = (home / "lab").resolve()
        self._process: subprocess.Popen[bytes] | None = None

    # -- a server of one's own -----------------------------------------------------------------------------

    @classmethod
    def start(cls, home: Path, **environment: str) -> LabClient:
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
                self.info()
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

    # -- commands ------------------------------------------------------------------------------------------

    @property
    def credentials_path(self) -> Path:
        """`lab/credentials.json`."""
        return self.root / "credentials.json"

    def credentials(self) -> dict[str, Any]:
        """Returns host, port, username, password, certificate (path), sha256, sha1 of the simulated vCenter."""
        found: dict[str, Any] = json.loads(self.credentials_path.read_text())
        return found

    def info(self) -> dict[str, Any]:
        """Returns address, sizes and settings of the lab."""
        return self._command("info")

    def vms(self) -> list[dict[str, Any]]:
        """Returns all VMs."""
        found: list[dict[str, Any]] = self._command("vm/list")["vms"]
        return found

    def create_vm(
        self,
        name: str,
        disks: list[str],
        *,
        seed: int = 1,
        small_files: int = 3000,
        folder: str = "",
    ) -> dict[str, Any]:
        """Creates a VM; `disks` as "2G:ext4" or "1G:xfs" (ext4 from 16M, xfs from 304M)."""
        return self._command("vm/create", name=name, disks=disks, seed=seed, small_files=small_files, folder=folder)

    def delete_vm(self, vm: str) -> dict[str, Any]:
        """Deletes a VM (name or moref)."""
        return self._command("vm/delete", vm=vm)

    def snapshots(self, vm: str) -> list[dict[str, Any]]:
        """Returns open and kept snapshots: moref, name, description, kept, disks with their change ids."""
        found: list[dict[str, Any]] = self._command("vm/snapshots", vm=vm)["snapshots"]
        return found

    def guest_write(
        self,
        vm: str,
        disk: int,
        offset: int,
        *,
        file: Path | None = None,
        seed: int = 0,
        length: int = 0,
    ) -> dict[str, Any]:
        """Writes a byte range of a disk from a file, or `length` bytes of a seed's stream."""
        path = str(file.resolve()) if file else None
        return self._command("guest/write", vm=vm, disk=disk, offset=offset, file=path, seed=seed, length=length)

    def guest_put(self, vm: str, local: Path, path: str) -> dict[str, Any]:
        """Puts a local file into the guest."""
        return self._command("guest/put", vm=vm, local=str(local.resolve()), path=path)

    def guest_rm(self, vm: str, path: str) -> dict[str, Any]:
        """Removes a file or directory of the guest."""
        return self._command("guest/rm", vm=vm, path=path)

    def guest_cat(self, vm: str, path: str, output: Path) -> dict[str, Any]:
        """Copies a file of the guest to a local one."""
        return self._command("guest/cat", vm=vm, path=path, output=str(output.resolve()))

    def guest_run(self, vm: str, *, share: float, seed: int = 0) -> dict[str, Any]:
        """Changes files at random: about `share` of the guest's file bytes."""
        return self._command("guest/run", vm=vm, share=share, seed=seed)

    def changed(self, vm: str, disk: int, since: str, *, snapshot: str | None = None) -> dict[str, Any]:
        """Returns `areas` (offset, length) and `bytes` changed since a change id, up to a snapshot or now."""
        return self._command("disk/changed", vm=vm, disk=disk, since=since, snapshot=snapshot)

    def export(self, vm: str, disk: int, output: Path, *, snapshot: str | None = None) -> dict[str, Any]:
        """Writes a disk's raw content, now or of a snapshot (moref or name, open or kept), to a sparse file."""
        return self._command("disk/export", vm=vm, disk=disk, output=str(output.resolve()), snapshot=snapshot)

    def set_page_areas(self, areas: int | None) -> dict[str, Any]:
        """Sets how many areas one answer of QueryChangedDiskAreas holds; None takes the setting again."""
        return self._command("fault/page-areas", areas=areas)

    def lose_sessions(self) -> dict[str, Any]:
        """Ends all sessions of the simulated vCenter."""
        return self._command("fault/lose-sessions")

    def _command(self, command: str, /, **arguments: object) -> dict[str, Any]:
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
