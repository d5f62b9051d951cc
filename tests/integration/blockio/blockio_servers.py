"""Real NBD servers for the engine's tests: nbdkit as a source, qemu-nbd and qemu-storage-daemon as targets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense_blockio.endpoint import Endpoint

START_SECONDS = 10.0

# Measured (performance.md): else the daemon takes page faults on a malloc for every request.
TUNED = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}


class NbdServers:
    """Starts servers below one directory and ends them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def socket_path(self) -> Path:
        self._count += 1
        return self.directory / f"{self._count}.sock"

    def nbdkit(self, *arguments: str, port: int | None = None) -> tuple[Endpoint, subprocess.Popen[bytes]]:
        """Starts nbdkit with a plugin and filters as given."""
        if port is not None:
            endpoint = Endpoint.tcp("127.0.0.1", port)
            place = ["-i", "127.0.0.1", "-p", str(port)]
        else:
            path = self.socket_path()
            endpoint = Endpoint.unix(path)
            place = ["-U", str(path)]
        process = self._start(["nbdkit", "-f", "--exit-with-parent", *place, *arguments])
        self._await(endpoint, process)
        return endpoint, process

    def qemu_nbd(self, image: Path, image_format: str, *arguments: str) -> Endpoint:
        """Serves an image for any number of clients, one after the other or at once."""
        path = self.socket_path()
        process = self._start(
            ["qemu-nbd", "-t", "-e", "0", "-k", str(path), "-f", image_format, *arguments, str(image)]
        )
        endpoint = Endpoint.unix(path)
        self._await(endpoint, process)
        return endpoint

    def storage_daemon(self, image: Path) -> tuple[Endpoint, subprocess.Popen[bytes]]:
        """Serves a qcow2 image from qemu-storage-daemon, as `nbdd` does."""
        path = self.socket_path()
        process = self._start(
            [
                "qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=file,filename={image}",
                "--blockdev", "driver=qcow2,node-name=disk,file=file",
                "--nbd-server", f"addr.type=unix,addr.path={path}",
                "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
            ]
        )  # fmt: skip
        endpoint = Endpoint.unix(path, "disk")
        self._await(endpoint, process)
        return endpoint, process

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        # Servers complain about each client that a test takes away: into a file, not between the results.
        with (self.directory / "servers.log").open("ab") as log:
            process = subprocess.Popen(arguments, env={**os.environ, **TUNED}, stderr=log)
        self._processes.append(process)
        return process

    @staticmethod
    def _await(endpoint: Endpoint, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
            family = socket.AF_INET if endpoint.socket_path is None else socket.AF_UNIX
            address = str(endpoint.socket_path) if endpoint.socket_path else (endpoint.host, endpoint.port)
            with socket.socket(family) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                probe.connect(address)
                # A greeting says that the server really serves; a bare listener may not yet.
                if probe.recv(8) == b"NBDMAGIC":
                    return
            assert time.monotonic() < deadline, f"{process.args!r} does not listen"
            time.sleep(0.01)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends one server and waits, so that its image is free."""
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def end_all(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                self.end(process)
        self._processes.clear()


@pytest.fixture
def nbd_servers(short_tmp: Path) -> Iterator[NbdServers]:
    servers = NbdServers(short_tmp)
    try:
        yield servers
    finally:
        servers.end_all()


@pytest.fixture
def tcp_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
