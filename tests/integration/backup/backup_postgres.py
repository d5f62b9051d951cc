"""A real PostgreSQL server for a test: its own data directory, its own port, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support import free_port


def _run(*command: str) -> None:
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # the server refuses to run as root
    subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")


class Server:
    """A PostgreSQL server in a directory of its own.

    Attributes:
        url: The catalogue's URL.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._pg_ctl, self._folder, self._data = binaries / "pg_ctl", folder, folder / "data"
        port = free_port()
        self._options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        self.url = f"postgresql+asyncpg://sendense@127.0.0.1:{port}/postgres"
        self.plain_url = f"postgresql://sendense@127.0.0.1:{port}/postgres"
        _run(
            *(str(binaries / "initdb"), "-D", str(self._data)),
            *("-U", "sendense", "-A", "trust", "--no-sync", "-E", "UTF8"),
        )

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = str(self._folder / "log")
        _run(str(self._pg_ctl), "-D", str(self._data), "-o", self._options, "-l", log, "-w", "-t", "60", "start")

    def kill(self) -> None:
        """Kills it as a power cut would: the postmaster and all of its children."""
        postmaster = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in (postmaster, *map(int, children)):
            while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
                time.sleep(0.02)
        # Where nobody reaps the dead, PostgreSQL would take the dead postmaster for a living one.
        for left in (self._data / "postmaster.pid", *self._folder.glob(".s.PGSQL.*.lock")):
            left.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stops it without ceremony."""
        _run(str(self._pg_ctl), "-D", str(self._data), "-m", "immediate", "-w", "stop")


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Runs a server; skips where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("PostgreSQL is not installed (make setup installs it)")
    folder = Path(tempfile.mkdtemp(prefix="s-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        server = Server(found[-1].parent, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgres() -> Iterator[str]:
    """Runs a server and yields the catalogue's URL."""
    with postgres_server() as server:
        yield server.url
