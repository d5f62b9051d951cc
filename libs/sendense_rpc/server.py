"""The only server bootstrap: every service's `main` ends in `serve`.

Starts logs, checks that every RPC is implemented and names its role, listens on a Unix socket (mode 0600), answers
health by looking, offers reflection, and drains on SIGTERM or SIGINT: running calls get `GRACE` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sendense_rpc.audit import AuditLog
from sendense_rpc.audit_client import audit_spool
from sendense_rpc.channel import message_sizes, service_peer
from sendense_rpc.errors import SendenseError
from sendense_rpc.interceptor import Door
from sendense_rpc.logs import configure_logs
from sendense_rpc.methods import Method, methods_of
from sendense_rpc.metrics import Refresh, serving_metrics
from sendense_rpc.mtls import server_credentials
from sendense_rpc.relay import Relay
from sendense_rpc.repeats import Ledger, Repeats
from sendense_rpc.settings import ServiceSettings
from sendense_rpc.trust import keep_fresh

log = structlog.get_logger()

GRACE = 10.0
"""Seconds that running calls get to finish after SIGTERM."""
CHECK_TIMEOUT = 2.0
"""Seconds that a health check may take before the service counts as not serving."""

HealthCheck = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Servicer:
    """A servicer and the full name of the service that it implements.

    Attributes:
        name: Full name, such as `sendense.backup.v1.BackupService`.
        servicer: Instance of the generated base class.
        register: The generated `add_…Servicer_to_server`.
        own_repeats: Names of the RPCs that look after their `request_id` themselves, in their own transaction.
    """

    name: str
    servicer: Any
    register: Callable[[Any, aio.Server], None]
    own_repeats: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Service:
    """What `serve` runs.

    Attributes:
        name: Short name, such as `backup`: the socket, the log and the identity are named after it.
        servicers: What it offers.
        check: Looks whether the service can do its work and raises what is wrong.
        reflect: Names of services whose descriptors reflection shows besides its own.
        requests: Keeps the answers to mutations that carry a `request_id`; a service with a public one needs it.
        audit: Where mutations and refusals are recorded; None for the access service's log, by way of a spool.
        metrics: Brings metrics that must be asked for up to date, before they are read.
        relays: Services that it only passes on.
    """

    name: str
    servicers: Sequence[Servicer]
    check: HealthCheck
    reflect: Sequence[str] = field(default_factory=tuple)
    requests: Ledger | None = None
    audit: AuditLog | None = None
    metrics: Refresh | None = None
    relays: Sequence[Relay] = ()


def run(build: Callable[[], AbstractAsyncContextManager[Service]], settings: ServiceSettings, name: str) -> None:
    """Runs a service until it is told to stop: what a `main` calls.

    Args:
        build: Opens what the service needs and yields it; closed after the last call has ended.
        settings: The service's settings.
        name: Short name for the logs until `build` has run.
    """
    configure_logs(name, settings.log_format)

    async def main() -> None:
        async with build() as service:
            await serve(service, settings)

    asyncio.run(main())


async def serve(service: Service, settings: ServiceSettings, *, stop: asyncio.Event | None = None) -> None:
    """Serves on the service's Unix socket until SIGTERM or SIGINT, or until `stop` is set.

    With `rpc_listen` set, other machines are served on that address too, over mTLS.
    """
    stop = stop or asyncio.Event()
    socket = settings.socket(service.name)
    repeats = Repeats(service.requests) if service.requests else None
    async with contextlib.AsyncExitStack() as stack:
        if "access" in settings.peers:
            await stack.enter_async_context(_trusting(settings, service.name))
        audit = service.audit or await stack.enter_async_context(audit_spool(settings, service.name))
        server = build_server(
            service.servicers,
            settings,
            check=service.check,
            reflect=service.reflect,
            repeats=repeats,
            audit=audit,
            relays=service.relays,
        )
        stack.enter_context(listening(socket))
        server.add_insecure_port(f"unix:{socket}")
        if settings.rpc_listen:
            server.add_secure_port(settings.rpc_listen, server_credentials(settings))
        await server.start()
        socket.chmod(0o600)
        metrics = settings.metrics_socket(service.name)
        stack.enter_context(listening(metrics))
        await stack.enter_async_context(serving_metrics(metrics, service.name, service.metrics))
        with _signals(stop):
            log.info("serving", socket=str(socket))
            await stop.wait()
            # Still with our handlers: a second signal must not cut the calls that are being finished.
            log.info("draining")
            await server.stop(GRACE)
            if repeats:
                await repeats.drain()
    log.info("stopped")


@contextlib.asynccontextmanager
async def _trusting(settings: ServiceSettings, name: str) -> AsyncIterator[None]:
    """Keeps this machine's keys and revoked tokens fresh for the time of the block."""
    peer = service_peer(settings, "access", name)
    task = asyncio.create_task(keep_fresh(peer, settings))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await peer.close()


@contextlib.contextmanager
def listening(socket: Path) -> Iterator[None]:
    """Makes room for a Unix socket (a dead one of an earlier run is removed) and removes it at the end."""
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    try:
        yield
    finally:
        socket.unlink(missing_ok=True)


def build_server(
    servicers: Sequence[Servicer],
    settings: ServiceSettings,
    *,
    check: HealthCheck,
    reflect: Sequence[str] = (),
    repeats: Repeats | None = None,
    audit: AuditLog | None = None,
    relays: Sequence[Relay] = (),
) -> aio.Server:
    """Returns a server with the one door, health and reflection; not yet listening.

    Raises:
        TypeError: A servicer leaves an RPC to its base class, or an RPC names no role.
    """
    methods: dict[str, Method] = {}
    for each in servicers:
        descriptor = descriptor_pool.Default().FindServiceByName(each.name)
        methods.update(methods_of(descriptor))
        _require_implemented(each, descriptor)
    for relay in relays:
        methods.update(relay.methods())
    own = frozenset(f"/{each.name}/{name}" for each in servicers for name in each.own_repeats)
    door = Door(settings.verifier(), methods, repeats=repeats, own_repeats=own, audit=audit)
    server = aio.server(
        interceptors=[door],
        options=[
            *message_sizes(),
            ("grpc.max_metadata_size", 32 << 10),
        ],
        maximum_concurrent_rpcs=1000,
    )
    server.add_generic_rpc_handlers(tuple(relay.handlers() for relay in relays))
    for each in servicers:
        each.register(each.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(_Health(check), server)
    names = {each.name for each in servicers} | set(reflect)
    reflection.enable_server_reflection((*sorted(names), reflection.SERVICE_NAME), server)
    return server


def _require_implemented(each: Servicer, descriptor: ServiceDescriptor) -> None:
    for method in descriptor.methods:
        own = getattr(type(each.servicer), method.name, None)
        inherited = any(
            getattr(base, method.name, None) is own
            for base in type(each.servicer).__mro__
            if base.__module__.endswith("_pb2_grpc")
        )
        if own is None or inherited:
            raise TypeError(f"{type(each.servicer).__name__} does not implement {method.name}")


class _Health(health_pb2_grpc.HealthServicer):
    """Health that looks: each answer is the result of a check made for it."""

    def __init__(self, check: HealthCheck) -> None:
        self._check = check

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        del request, context
        try:
            await asyncio.wait_for(self._check(), CHECK_TIMEOUT)
        except (SendenseError, OSError, TimeoutError) as error:
            log.warning("health check failed", error=str(error) or type(error).__name__)
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
