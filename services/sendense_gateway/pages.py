"""The few pages that the gateway serves itself, behind Envoy: which services answer, what the API is, the keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sendense_gateway.api_docs import add_docs
from sendense_gateway.edge_tokens import KEYS_PATH, OIDC, OWN
from sendense_gateway.oversize import refuse_oversize
from sendense_gateway.routes import API_PREFIX, METRICS_PATH, OPENAPI_PATH
from sendense_rpc.channel import Peer, service_peer
from sendense_rpc.errors import SendenseError
from sendense_rpc.identity import require_role
from sendense_rpc.metrics import CONTENT_TYPE, gather_metrics
from sendense_rpc.server import listening
from sendense_rpc.settings import ServiceSettings

CHECK_TIMEOUT = 3.0
"""Seconds for each service; its own check has 2."""


@asynccontextmanager
async def serving_pages(
    settings: ServiceSettings, socket: Path, services: Sequence[str], openapi: Path
) -> AsyncIterator[None]:
    """Serves the pages on a Unix socket (0600) for the time of the block.

    Args:
        settings: Where the services' sockets and this process's identity are.
        socket: Where to listen.
        services: The services that must answer for the system to be ready.
        openapi: File with the description of the REST API.
    """
    document = await asyncio.to_thread(openapi.read_text)
    async with AsyncExitStack() as stack:
        peers: dict[str, Peer] = {}
        for service in services:
            peers[service] = service_peer(settings, service, "gateway")
            stack.push_async_callback(peers[service].close)

        async def ready(request: web.Request) -> web.Response:
            del request
            states = dict(zip(peers, await asyncio.gather(*map(_state, peers.values())), strict=True))
            good = all(state == "serving" for state in states.values())
            missing = [name for name, state in states.items() if state != "serving"]
            return web.json_response(
                {"ready": good, "missing": missing, "services": states}, status=200 if good else 503
            )

        async def keys(request: web.Request) -> web.Response:
            file = key_files[request.match_info["provider"]]
            return web.json_response(text=await asyncio.to_thread(_keys, file))

        async def describe(request: web.Request) -> web.Response:
            del request
            return web.json_response(text=document)

        async def metrics(request: web.Request) -> web.Response:
            # Envoy has checked the token; whose it is, and that it is not limited to some VMs, is checked here.
            try:
                caller = verifier.verify(request.headers.get("authorization"))
                require_role(caller, "viewer", METRICS_PATH)
                if caller.limits:
                    raise web.HTTPForbidden(text="a limited token sees no metrics")
            except SendenseError as error:
                raise web.HTTPForbidden(text=error.message) from error
            return web.Response(text=await gather_metrics(settings.run_dir), headers={"content-type": CONTENT_TYPE})

        verifier = settings.verifier()
        application = web.Application()
        application.router.add_get(METRICS_PATH, metrics)
        application.router.add_get("/readyz", ready)
        application.router.add_get(OPENAPI_PATH, describe)
        key_files = {OWN: settings.jwks_file, OIDC: settings.oidc_jwks_file}
        application.router.add_get(f"{KEYS_PATH}{{provider:{OWN}|{OIDC}}}", keys)
        add_docs(application)
        # Envoy leads nothing else of the API here.
        application.router.add_route("*", API_PREFIX + "{rest:.*}", refuse_oversize)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.enter_context(listening(socket))
        await web.UnixSite(runner, str(socket)).start()
        await asyncio.to_thread(socket.chmod, 0o600)
        yield


def _keys(file: Path) -> str:
    # No keys yet is no reason to let the listener wait: no token is good until there are some.
    return file.read_text() if file.exists() else '{"keys": []}'


async def _state(peer: Peer) -> str:
    """Returns `serving`, `not serving` (the service answers and says so) or `unreachable`."""
    try:
        stub: Any = health_pb2_grpc.HealthStub(peer.channel)
        answer = await peer.call(stub.Check, health_pb2.HealthCheckRequest(), timeout=CHECK_TIMEOUT)
    except (SendenseError, OSError):
        return "unreachable"
    return "serving" if answer.status == health_pb2.HealthCheckResponse.SERVING else "not serving"
