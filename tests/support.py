"""What tests of several services need, besides fixtures."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sendense_rpc.server import Service, serve
from sendense_rpc.settings import ServiceSettings


def free_port() -> int:
    """Returns a TCP port on 127.0.0.1 that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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
