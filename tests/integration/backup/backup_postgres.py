"""A real PostgreSQL server for a test: its own data directory, its own port, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support import free_port


def _run(*command: str, launcher: Sequence[str] = ()) -> None:
    # The server refuses to run as root.
    prefix = [*launcher, "runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else launcher
    subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")


class Server:
    """A PostgreSQL server in a directory of its own.

    Attributes:
        url: The catalogue's URL.
    """

    def __init__(self, binaries: Path, folder: Path, host: str, launcher: Sequence[str]) -> None:
        self._launcher = launcher
        self._pg_ctl, self._folder, self._data = binaries / "pg_ctl", folder, folder / "data"
        port = free_port()
        self._options = f"-p {port} -c listen_addresses={host} -c unix_socket_directories={folder} -c fsync=off"
        self.url = f"postgresql+asyncpg://sendense@{host}:{port}/postgres"
        self.plain_url = f"postgresql://sendense@{host}:{port}/postgres"
        _run(
            *(str(binaries / "initdb"), "-D", str(self._data)),
            *("-U", "sendense", "-A", "trust", "--no-sync", "-E", "UTF8"),
        )
        with (self._data / "pg_hba.conf").open("a") as hba:
            hba.write("host all all samenet trust\n")

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = str(self._folder / "log")
        start = ("-o", self._options, "-l", log, "-w", "-t", "60", "start")
        _run(str(self._pg_ctl), "-D", str(self._data), *start, launcher=self._launcher)

    def kill(self) -> None:
        """Kills it as a power cut would: the postmaster and all of its children."""
        postmaster = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        for pid in (postmaster, *map(int, children)):
            while _lives(pid):
                assert time.monotonic() < deadline, f"process {pid} of PostgreSQL survives SIGKILL"
                time.sleep(0.02)
        # Where nobody reaps the dead, PostgreSQL would take the dead postmaster for a living one.
        for left in (self._data / "postmaster.pid", *self._folder.glob(".s.PGSQL.*.lock")):
            left.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stops it without ceremony; no error when a test has killed it."""
        if not (self._data / "postmaster.pid").exists():
            return
        _run(str(self._pg_ctl), "-D", str(self._data), "-m", "immediate", "-w", "stop")


def _lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def postgres_server(host: str = "127.0.0.1", launcher: Sequence[str] = ()) -> Iterator[Server]:
    """Runs a server; skips where PostgreSQL is not installed.

    Args:
        host: Address to listen on.
        launcher: What runs it, such as `ip netns exec …`.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("PostgreSQL is not installed (make setup installs it)")
    folder = Path(tempfile.mkdtemp(prefix="s-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        server = Server(found[-1].parent, folder, host, launcher)
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
