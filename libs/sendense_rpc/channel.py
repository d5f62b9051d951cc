"""Calls to other Sendense services: workload identity, request id, a deadline always, failures as `RemoteError`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from grpc import aio

from sendense_rpc.interceptor import REQUEST_ID
from sendense_rpc.status import from_rpc_error

Request = TypeVar("Request")
Answer = TypeVar("Answer")

MAX_MESSAGE_BYTES = 8 << 20
DEFAULT_TIMEOUT = 30.0


class Peer:
    """Another service, reached over one channel.

    Use it with a generated stub: `await peer.call(BackupServiceStub(peer.channel).GetBackup, request)`.

    Args:
        target: gRPC target, such as `unix:/…/repository.sock`.
        identity_file: File with the workload token; read at each call, so that it can be renewed.
    """

    def __init__(self, target: str, identity_file: Path) -> None:
        self._identity_file = identity_file
        self.channel = aio.insecure_channel(
            target,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Over a Unix socket, Python's gRPC would otherwise name the escaped path as authority.
                ("grpc.default_authority", "localhost"),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of an outgoing call."""
        entries = [("authorization", f"Bearer {self._identity_file.read_text().strip()}")]
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        if request_id:
            entries.append((REQUEST_ID, str(request_id)))
        return tuple(entries)

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
            raise from_rpc_error(error) from error

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
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Closes the channel; calls in progress are cancelled."""
        await self.channel.close()


def unix_peer(socket: Path, identity_file: Path) -> Peer:
    """Returns a peer on a Unix socket of this machine."""
    return Peer(f"unix:{socket}", identity_file)
