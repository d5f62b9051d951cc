"""One gateway for all tests of a module: real Envoy, real access service, hand-written fakes of the others."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio

from fakes.gateway_fakes import Seen, running, services
from sendense_access.config import AccessSettings
from sendense_access.keys import SigningKey, write_workload_identities
from sendense_access.main import build
from sendense_access.store import metadata
from sendense_db.engine import Database
from sendense_gateway.config import GatewaySettings
from sendense_gateway.main import serve
from support import serving


@dataclass(frozen=True)
class Edge:
    """The running gateway, as a client sees it, and what arrived behind it."""

    endpoint: str
    key: SigningKey
    seen: Seen
    settings: GatewaySettings
    http: httpx.AsyncClient

    @property
    def ca(self) -> Path:
        return self.settings.tls_dir / "ca.crt"

    def token(self, role: str = "admin") -> str:
        return self.key.sign(f"{role}-person", role, 600)

    def auth(self, role: str = "admin") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(role)}"}

    async def get(self, path: str, role: str = "admin") -> httpx.Response:
        return await self.http.get(path, headers=self.auth(role))

    async def post(self, path: str, role: str = "admin", **body: object) -> httpx.Response:
        return await self.http.post(path, headers=self.auth(role), **body)

    async def post_raw(self, path: str, body: bytes, content_type: str) -> httpx.Response:
        headers = {**self.auth(), "content-type": content_type}
        return await self.http.post(path, headers=headers, content=body)

    def channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca.read_bytes())
        return grpc.aio.secure_channel(self.endpoint.removeprefix("https://"), credentials)


async def eventually(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Waits until a condition holds; TimeoutError when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[Edge]:
    """The gateway with all services but exports, which is down until a test starts it."""
    home = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    before = os.environ.get("SENDENSE_HOME")
    os.environ["SENDENSE_HOME"] = str(home)
    try:
        access, gateway = AccessSettings(), GatewaySettings()
    finally:
        if before is None:
            del os.environ["SENDENSE_HOME"]
        else:
            os.environ["SENDENSE_HOME"] = before
    key = SigningKey.load_or_create(access.keys_dir)
    write_workload_identities(key, access.keys_dir)
    database = Database(access.catalogue_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()
    seen = Seen()
    stop = asyncio.Event()
    try:
        async with build(access) as service, serving(service, access), running(access, seen):
            task = asyncio.create_task(serve(gateway, stop))
            try:
                await eventually(lambda: gateway.endpoint_file.exists() or task.done())
                endpoint = gateway.endpoint_file.read_text().strip()
                context = ssl.create_default_context(cafile=gateway.tls_dir / "ca.crt")
                async with httpx.AsyncClient(base_url=endpoint, verify=context, timeout=20, trust_env=False) as http:
                    yield Edge(endpoint, key, seen, gateway, http)
            finally:
                stop.set()
                await task
    finally:
        shutil.rmtree(home)


@pytest.fixture
def exports(edge: Edge):
    """Returns the exports service, not running."""
    return serving(services(edge.seen)["exports"], edge.settings)
