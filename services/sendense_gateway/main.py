"""Process `sendense-gateway`: makes Envoy's configuration, runs Envoy, and ends when Envoy does.

Writes `$SENDENSE_HOME/endpoint` once the gateway listens and removes it at the end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

import structlog

from sendense_gateway.bootstrap import Inputs, bootstrap
from sendense_gateway.config import GatewaySettings
from sendense_gateway.contract import Contract, packaged
from sendense_gateway.envoy_process import EnvoyFailed, EnvoyProcess, validate
from sendense_gateway.pages import serving_pages
from sendense_gateway.tls import ServerCertificate, ensure_certificate, server_names
from sendense_rpc.logs import configure_logs
from sendense_rpc.server import listening

log = structlog.get_logger()

UNROUTED_SERVICES = ("tunnel",)
"""Services without a public RPC that a ready system needs all the same."""

KEYS_TIMEOUT = 30.0


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Runs the gateway until `stop` is set.

    Raises:
        EnvoyFailed: There are no keys, or Envoy refused the configuration, did not start or died.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    await _keys_are_there(settings)
    contract = Contract.load(packaged("descriptor.binpb"))
    inputs = Inputs(
        settings=settings,
        port=_choose_port(settings),
        certificate=_certificate(settings),
        contract=contract,
        descriptor=packaged("descriptor.binpb"),
    )
    config_file = settings.state_dir / "envoy.json"
    _replace(config_file, json.dumps(bootstrap(inputs), indent=1))
    await validate(config_file)
    services = (*contract.owners, *UNROUTED_SERVICES)
    pages = serving_pages(settings, settings.pages_socket, services, packaged("openapi.json"))
    async with pages:
        with listening(settings.admin_socket):
            await _serve_public(settings, config_file, stop)


async def _keys_are_there(settings: GatewaySettings) -> None:
    """Waits for the public keys, which the access service writes at its first start: the order of starts is free."""
    deadline = time.monotonic() + KEYS_TIMEOUT
    while not await asyncio.to_thread(settings.jwks_file.exists):
        if time.monotonic() > deadline:
            raise EnvoyFailed(f"there is no {settings.jwks_file}: is the access service running?")
        await asyncio.sleep(0.1)


async def _serve_public(settings: GatewaySettings, config_file: Path, stop: asyncio.Event) -> None:
    envoy = await EnvoyProcess.start(
        config_file, settings.admin_socket, concurrency=settings.concurrency, log_level=settings.log_level
    )
    try:
        await _run(envoy, settings, stop)
    finally:
        settings.endpoint_file.unlink(missing_ok=True)
        await envoy.stop()


async def _run(envoy: EnvoyProcess, settings: GatewaySettings, stop: asyncio.Event) -> None:
    port = await envoy.ready()
    _replace(settings.port_file, f"{port}\n")
    endpoint = f"https://{_reachable_host(settings.listen_host)}:{port}"
    _replace(settings.endpoint_file, f"{endpoint}\n")
    log.info("serving", endpoint=endpoint)
    died = asyncio.ensure_future(envoy.wait())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((died, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            raise EnvoyFailed(f"Envoy died with status {died.result()}")
        settings.endpoint_file.unlink(missing_ok=True)
        log.info("draining")
        await envoy.drain(settings.drain_seconds)
    finally:
        died.cancel()
        stopped.cancel()


def _certificate(settings: GatewaySettings) -> ServerCertificate:
    if settings.tls_cert and settings.tls_key:
        return ServerCertificate(settings.tls_cert.absolute(), settings.tls_key.absolute())
    further = [name.strip() for name in settings.tls_names.split(",")]
    host = settings.listen_host
    if _reachable_host(host).strip("[]") == host:
        further.append(host)
    return ensure_certificate(settings.tls_dir, server_names(further))


def _choose_port(settings: GatewaySettings) -> int:
    """Returns the port that is asked for, else that of the last run if it is free, else 0: Envoy takes a free one."""
    if settings.listen_port:
        return settings.listen_port
    try:
        port = int(settings.port_file.read_text())
        family = socket.AF_INET6 if ":" in settings.listen_host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.listen_host, port))
    except (OSError, ValueError):
        return 0
    return port


def _reachable_host(listen_host: str) -> str:
    """Returns the host to connect to from this machine for an address that is listened on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen_host, listen_host)  # noqa: S104  # compared, not bound
    return f"[{host}]" if ":" in host else host


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(content)
    temporary.rename(path)


async def _serve_until_told(settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main() -> None:
    """Runs the gateway until SIGTERM; ends with status 1 when Envoy does not run."""
    settings = GatewaySettings()
    configure_logs("gateway", settings.log_format)
    try:
        asyncio.run(_serve_until_told(settings))
    except EnvoyFailed as error:
        log.error("gateway failed", error=str(error))  # noqa: TRY400  # Envoy's words say it all
        sys.exit(1)
    log.info("stopped")


if __name__ == "__main__":
    main()
