"""Metrics of every service, in Prometheus' text format, on a Unix socket of mode 0600: `run/<service>.metrics`.

Nothing listens without authentication (docs/adr): who may open the socket is the file system's to say, and over the
network the gateway answers `GET /api/v1/metrics` for all services of a node to whoever has a token. Each line names its
service. A metric whose value must be asked for (from a catalogue, from another service) is refreshed when it is read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest

log = structlog.get_logger()

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = 10.0
"""How long a request may take to arrive, and an answer to be made."""
_MOST_REQUEST_BYTES = 8192

REGISTRY = CollectorRegistry()
"""All metrics of this process."""

CALLS = Counter("sendense_calls", "Calls that were answered.", ["method", "code", "reason"], registry=REGISTRY)
CALL_SECONDS = Histogram("sendense_call_seconds", "How long calls took.", ["method"], registry=REGISTRY)
ProcessCollector(registry=REGISTRY)

Refresh = Callable[[], Awaitable[None]]
"""Brings the metrics that must be asked for up to date."""

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?", re.MULTILINE)


def count_call(method: str, code: str, reason: str, seconds: float) -> None:
    """Counts a call that was answered."""
    name = method.lstrip("/")
    CALLS.labels(name, code, reason).inc()
    CALL_SECONDS.labels(name).observe(seconds)


@asynccontextmanager
async def serving_metrics(socket: Path, service: str, refresh: Refresh | None) -> AsyncIterator[None]:
    """Answers HTTP GETs on a Unix socket with this process's metrics for the time of the block.

    Args:
        socket: Where; its folder is there, and nothing of its name.
        service: The service's name, a label of each sample.
        refresh: Called before each answer; when it fails, the answer says so with `sendense_metrics_complete 0`.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await reader.readuntil(b"\r\n\r\n")
                body = (await _exposed(service, refresh)).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
                writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.warning("metrics were not read", error=str(error) or type(error).__name__)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, str(socket), limit=_MOST_REQUEST_BYTES)
    await asyncio.to_thread(socket.chmod, 0o600)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


async def _exposed(service: str, refresh: Refresh | None) -> str:
    complete = 1
    if refresh is not None:
        try:
            await refresh()
        except Exception:  # half of the metrics are better than none; the other half says so
            log.exception("metrics could not be refreshed")
            complete = 0
    text = generate_latest(REGISTRY).decode()
    text += "# HELP sendense_metrics_complete Whether all metrics of the service could be read.\n"
    text += f"# TYPE sendense_metrics_complete gauge\nsendense_metrics_complete {complete}\n"
    return _SAMPLE.sub(lambda found: f'{found[1]}{{service="{service}"' + ("," if found[2] else "}"), text)


async def read_metrics(socket: Path) -> str:
    """Returns what a service answers on its socket.

    Raises:
        OSError: It does not answer.
    """
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await writer.drain()
                _, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except TimeoutError as error:
        raise OSError(f"{socket} does not answer") from error
    return body.decode()


async def gather_metrics(folder: Path) -> str:
    """Returns the metrics of all services whose sockets are in a folder, each family once, as the format wants it."""
    sockets = sorted(await asyncio.to_thread(lambda: list(folder.glob("*.metrics"))))
    texts = await asyncio.gather(*(read_metrics(each) for each in sockets), return_exceptions=True)
    families: dict[str, list[str]] = {}
    comments: dict[str, list[str]] = {}
    for socket, text in zip(sockets, texts, strict=True):
        up = isinstance(text, str)
        lines = text.splitlines() if isinstance(text, str) else []
        lines += ["# HELP sendense_up Whether a service's metrics could be read.", "# TYPE sendense_up gauge"]
        lines.append(f'sendense_up{{service="{socket.stem}"}} {int(up)}')
        _sort_in(lines, families, comments)
    return "".join(f"{line}\n" for name, samples in families.items() for line in [*comments[name], *samples])


def _sort_in(lines: list[str], families: dict[str, list[str]], comments: dict[str, list[str]]) -> None:
    family = ""
    for line in lines:
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            families.setdefault(family, [])
            comments.setdefault(family, [])
        if line.startswith("#"):
            if line not in comments[family]:
                comments[family].append(line)
        else:
            families[family].append(line)
