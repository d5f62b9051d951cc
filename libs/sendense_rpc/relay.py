"""Passes calls on to a process that only this machine reaches, for callers on other machines.

An agent's gRPC server is a Unix socket at the tunnel: whoever runs elsewhere calls the tunnel over mTLS and says in
`TO` whom it means. Messages pass as the bytes that they are. The door of this process has verified the caller before;
its token travels along and is verified again by who answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc import aio

from sendense_rpc.channel import REQUEST_ID, message_sizes
from sendense_rpc.limits import HEADER as LIMITS
from sendense_rpc.methods import Method, methods_of

TO = "x-sendense-relay-to"
_TRAVELS = ("authorization", REQUEST_ID, LIMITS)


class Relay:
    """One service that is passed on.

    Args:
        service: Its full name, such as `sendense.agent.v1.AgentService`; its descriptor has been imported.
        find: Returns the Unix socket of whom a caller means; raises SendenseError when nobody is called so.
    """

    def __init__(self, service: str, find: Callable[[str], Path]) -> None:
        self._service = service
        self._find = find
        self._channels: dict[Path, aio.Channel] = {}

    def methods(self) -> dict[str, Method]:
        """Returns the service's RPCs by their gRPC path; the door asks for their roles."""
        return methods_of(descriptor_pool.Default().FindServiceByName(self._service))

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns what a server registers. A stream of bytes both ways carries each kind of RPC."""
        passing: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            path.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(self._passing(path))
            for path in self.methods()
        }
        return grpc.method_handlers_generic_handler(self._service, passing)

    def _passing(self, path: str) -> Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]:
        async def call(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            said = dict(context.invocation_metadata() or ())
            channel = self._channel(self._find(str(said.get(TO, ""))))
            metadata = tuple((name, said[name]) for name in _TRAVELS if name in said)
            method: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
            onward = method(requests, timeout=context.time_remaining(), metadata=metadata)
            try:
                async for answer in onward:
                    yield answer
            finally:
                onward.cancel()

        return call

    def _channel(self, socket: Path) -> aio.Channel:
        if socket not in self._channels:
            options = [*message_sizes(), ("grpc.default_authority", "localhost")]
            self._channels[socket] = aio.insecure_channel(f"unix:{socket}", options=options)
        return self._channels[socket]

    async def close(self) -> None:
        """Closes the ways onward; calls in progress are cancelled."""
        for channel in self._channels.values():
            await channel.close()
