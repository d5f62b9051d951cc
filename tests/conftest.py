"""Fixtures that every kind of test may use: short paths, free ports, a look at what was left behind."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sendense_access.keys import SigningKey, write_workload_identities
from sendense_rpc.server import Service, serve
from sendense_rpc.settings import ServiceSettings

pytest_plugins = ["whole_node"]


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's address holds 107 bytes, pytest's tmp_path is longer."""
    path = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def free_port() -> int:
    """Returns a TCP port on 127.0.0.1 that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def sendense_home(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with a signing key and workload identities; `SENDENSE_HOME` points to it."""
    monkeypatch.setenv("SENDENSE_HOME", str(short_tmp))
    keys = short_tmp / "keys"
    write_workload_identities(SigningKey.load_or_create(keys), keys)
    return short_tmp


@asynccontextmanager
async def serving(service: Service, settings: ServiceSettings) -> AsyncIterator[None]:
    """Runs a service on its real Unix socket, in this process, for the time of the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(serve(service, settings, stop=stop))
    while not settings.socket(service.name).exists() and not task.done():  # noqa: ASYNC110  # as another process would
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        stop.set()
        await task
