"""Calls to other Sendense services: workload identity, request id, a deadline always, failures as `RemoteError`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from grpc import aio

from sendense_rpc.identity import current_limits
from sendense_rpc.limits import HEADER as LIMITS
from sendense_rpc.mtls import channel_credentials
from sendense_rpc.settings import ServiceSettings
from sendense_rpc.status import from_rpc_error

Request = TypeVar("Request")
Answer = TypeVar("Answer")

REQUEST_ID = "x-request-id"
MAX_MESSAGE_BYTES = 8 << 20
DEFAULT_TIMEOUT = 30.0


class Peer:
    """Another service, reached over one channel.

    Use it with a generated stub: `await peer.call(BackupServiceStub(peer.channel).GetBackup, request)`.

    Args:
        target: gRPC target, such as `unix:/…/repository.sock`.
        identity_file: File with the workload token; read at each call, so that it can be renewed.
        credentials: How the other machine proves itself and we do; None on this machine.
        service: Its short name, for messages.
        further: Metadata of each call, besides what every call carries.
    """

    def __init__(
        self,
        target: str,
        identity_file: Path,
        credentials: grpc.ChannelCredentials | None = None,
        service: str = "",
        further: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._identity_file = identity_file
        self._service = service
        self._further = further
        options: list[tuple[str, str | int]] = [*message_sizes(), ("grpc.max_reconnect_backoff_ms", 1000)]
        if credentials is None:
            # Over a Unix socket, Python's gRPC would otherwise name the escaped path as authority.
            options.append(("grpc.default_authority", "localhost"))
            self.channel = aio.insecure_channel(target, options=options)
        else:
            options.append(("grpc.keepalive_time_ms", 30_000))
            self.channel = aio.secure_channel(target, credentials, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of an outgoing call."""
        entries = [("authorization", f"Bearer {self._identity_file.read_text().strip()}")]
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        if request_id:
            entries.append((REQUEST_ID, str(request_id)))
        limits = current_limits()
        if limits:
            entries.append((LIMITS, limits.to_header()))
        return (*entries, *self._further)

    async def call(
        self, method: Callable[..., Awaitable[Answer]], request: Any, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Answer:
        """Calls an RPC with one answer; `request` is a message, or an async iterator of them for a client stream.

        Raises:
            RemoteError: What the service reported, or why it could not be reached.
        """
        try:
            return await method(request, timeout=timeout, metadata=self.metadata())
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._service) from error

    async def stream(
        self, method: Callable[..., Any], request: Any, *, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """Calls an RPC with a stream of answers and yields them. Leaving the loop early cancels the call.

        Raises:
            RemoteError: What the service reported, or why it could not be reached.
        """
        call = method(request, timeout=timeout, metadata=self.metadata())
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._service) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Closes the channel; calls in progress are cancelled."""
        await self.channel.close()


def message_sizes() -> list[tuple[str, str | int]]:
    """Returns a channel's or server's options that bound messages."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]


def unix_peer(socket: Path, identity_file: Path) -> Peer:
    """Returns a peer on a Unix socket of this machine."""
    return Peer(f"unix:{socket}", identity_file, service=socket.stem)


def service_peer(
    settings: ServiceSettings, service: str, workload: str, further: tuple[tuple[str, str], ...] = ()
) -> Peer:
    """Returns a service as a peer: on the other machine that the settings name, else on this one's Unix socket.

    Args:
        settings: Where the sockets are, and `SENDENSE_PEERS`.
        service: Short name of the service, such as `repository`.
        workload: Short name of who calls: its identity is used.
        further: Metadata of each call to another machine, besides what every call carries.
    """
    identity = settings.identity_file(workload)
    address = settings.peers.get(service)
    if address is None:
        return unix_peer(settings.socket(service), identity)
    return Peer(address, identity, channel_credentials(settings), service, further)
