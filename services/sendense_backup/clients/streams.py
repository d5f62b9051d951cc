"""Calls that stream requests, written so that a failing source can never look like the end of the stream.

gRPC's request iterators turn an error of the iterator into a bare cancellation; here the requests are written one by
one: an error of the source cancels the call and is raised as it is, and only a complete source half-closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from sendense_rpc.channel import Peer
from sendense_rpc.status import from_rpc_error


async def send_all(peer: Peer, method: Callable[..., Any], requests: AsyncIterator[Any], *, timeout: float) -> Any:
    """Sends all requests and returns the one answer.

    Raises:
        RemoteError: What the service reported, or why it could not be reached.
    """
    call = method(timeout=timeout, metadata=peer.metadata())
    try:
        await _write(call, requests)
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()


async def exchange(peer: Peer, method: Callable[..., Any], requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Sends all requests, then yields the answers. Leaving the loop early cancels the call.

    Raises:
        RemoteError: What the service reported, or why it could not be reached.
    """
    call = method(metadata=peer.metadata())
    try:
        await _write(call, requests)
        async for answer in call:
            yield answer
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()


async def _write(call: Any, requests: AsyncIterator[Any]) -> None:
    async for request in requests:
        try:
            await call.write(request)
        except asyncio.InvalidStateError:
            return  # the service has answered already, with an error: reading the answer raises it
    await call.done_writing()
