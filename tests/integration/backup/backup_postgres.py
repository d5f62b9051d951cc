"""A real PostgreSQL server for a test: its own data directory, its own port, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import free_port


def _run(*command: str) -> None:
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # the server refuses to run as root
    subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")


@contextmanager
def postgres() -> Iterator[str]:
    """Runs a server and yields the catalogue's URL; skips where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("PostgreSQL is not installed (make setup installs it)")
    binaries = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="s-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        data, port = folder / "data", free_port()
        _run(str(binaries / "initdb"), "-D", str(data), "-U", "sendense", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        _run(str(binaries / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+asyncpg://sendense@127.0.0.1:{port}/postgres"
        finally:
            _run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)
