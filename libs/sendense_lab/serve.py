"""The lab's server process: the vCenter's HTTPS port and the control socket, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog
from aiohttp import web

from sendense_lab import credentials
from sendense_lab.config import LabSettings
from sendense_lab.control import Control
from sendense_lab.errors import LabError
from sendense_lab.https import VcenterServer, tls_context
from sendense_lab.inventory import Inventory
from sendense_lab.lab import Lab
from sendense_lab.methods import Methods
from sendense_lab.serving import Serving
from sendense_lab.sessions import Sessions

log = structlog.get_logger(__name__)

SOCKET = "lab.sock"


async def serve(settings: LabSettings) -> None:
    """Runs the lab until it is told to stop.

    Raises:
        LabError: Another server has this home, or the port asked for is taken.
    """
    root = settings.root
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(root):
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        lab = await asyncio.to_thread(Lab, settings)
        try:
            await _serve_lab(lab, settings, stop)
        finally:
            await asyncio.to_thread(lab.close)


async def _serve_lab(lab: Lab, settings: LabSettings, stop: asyncio.Event) -> None:
    root = settings.root
    certificate, key = credentials.ensure_certificate(root, settings.host)
    inventory = Inventory(lab)
    server, serving = _listen(lab, settings, inventory, certificate, key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="vcenter")
    thread.start()
    runner = web.AppRunner(Control(lab, serving).application())
    try:
        await runner.setup()
        (root / SOCKET).unlink(missing_ok=True)
        await _open_socket(runner, root / SOCKET)
        log.info("the lab is ready", url=serving.url, home=str(settings.home))
        await stop.wait()
        log.info("stopping")
        lab.give_up()
    finally:
        (root / SOCKET).unlink(missing_ok=True)
        await runner.cleanup()
        serving.sessions.close_all()
        await asyncio.to_thread(server.shutdown)
        server.close_connections()
        server.server_close()
        thread.join()


def _listen(
    lab: Lab, settings: LabSettings, inventory: Inventory, certificate: Path, key: Path
) -> tuple[VcenterServer, Serving]:
    tls = tls_context(certificate, key)
    account = credentials.save(settings.root, settings.host, lab.record.port, certificate)
    sessions = Sessions(lab, inventory, account)
    methods = Methods(lab, inventory, sessions)
    choices = [settings.port] if settings.port else [lab.record.port, 0]
    for port in choices:
        try:
            server = VcenterServer((settings.host, port), tls, lab, methods, sessions)
        except OSError as err:
            if port == choices[-1]:
                raise LabError(f"Cannot listen on {settings.host}:{port}: {err}", reason="PORT_TAKEN") from err
            continue
        chosen = int(server.server_address[1])
        lab.remember_port(chosen)
        account = credentials.save(settings.root, settings.host, chosen, certificate)
        return server, Serving(settings.root, account, sessions, tls)
    raise LabError("no port")


async def _open_socket(runner: web.AppRunner, path: Path) -> None:
    """Opens the control socket; its mode is the authentication, so it is private from the first moment."""
    before = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(path)).start()
    finally:
        os.umask(before)


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    with (root / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise LabError(f"Another server runs with {root}", reason="ALREADY_RUNNING") from err
        yield
