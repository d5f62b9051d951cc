"""Row 10: oversized, endless and cancelled gRPC streams cost bounded memory and leave no call behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from sendense.repository.v1 import layer_pb2, layer_pb2_grpc
from sendense_rpc.channel import MAX_MESSAGE_BYTES, Peer, unix_peer
from sendense_rpc.errors import Kind, RemoteError
from sendense_rpc.server import Service, Servicer
from sendense_rpc.settings import ServiceSettings
from support import serving

pytestmark = pytest.mark.faults

CHUNK = 1000
ENDLESS_MESSAGES = 10_000
"""At about 20 KiB each 200 MiB: twice what may be held."""
ALLOWED_GROWTH = 96 << 20


class Layers(layer_pb2_grpc.LayerServiceServicer):
    """Counts, holds, and notices its end; what it does not look at must not pile up."""

    def __init__(self) -> None:
        self.seen = 0
        self.running = 0
        self.ended = asyncio.Event()

    async def SetAreas(self, request_iterator: AsyncIterator[Any], context: Any) -> layer_pb2.Areas:
        self.running += 1
        try:
            async for _ in request_iterator:
                self.seen += 1
            return layer_pb2.Areas(count=self.seen)
        finally:
            self.running -= 1
            self.ended.set()

    async def ListRemainingAreas(self, request: Any, context: Any) -> AsyncIterator[layer_pb2.AreaPage]:
        self.running += 1
        try:
            while True:
                yield layer_pb2.AreaPage(areas=[layer_pb2.Area(offset=n, length=1) for n in range(CHUNK)])
                self.seen += 1
        finally:
            self.running -= 1
            self.ended.set()

    async def AppendJournal(self, request: Any, context: Any) -> layer_pb2.JournalState:
        self.seen += 1
        return layer_pb2.JournalState()


def _whole(servicer: type[Layers]) -> Layers:
    """Returns the servicer with the RPCs that no test here calls, which a server wants implemented."""

    async def unwanted(self: Any, request: Any, context: Any) -> None:
        raise AssertionError

    names = [method.name for method in layer_pb2.DESCRIPTOR.services_by_name["LayerService"].methods]
    missing = {name: unwanted for name in names if name not in vars(servicer)}
    whole: Layers = type("WholeLayers", (servicer,), missing)()
    return whole


async def fine() -> None:
    return


@pytest.fixture
async def layers(sendense_home: Path) -> AsyncIterator[tuple[Layers, Peer]]:
    servicer, settings = _whole(Layers), ServiceSettings()
    offered = Servicer(
        "sendense.repository.v1.LayerService", servicer, layer_pb2_grpc.add_LayerServiceServicer_to_server
    )
    async with serving(Service("repository", [offered], fine), settings):
        peer = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
        yield servicer, peer
        await peer.close()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def areas() -> list[layer_pb2.Area]:
    return [layer_pb2.Area(offset=n << 20, length=1 << 20) for n in range(CHUNK)]


async def test_an_endless_stream_from_a_client_is_read_in_bounded_memory(layers: tuple[Layers, Peer]) -> None:
    _, peer = layers
    page = areas()

    async def endless() -> AsyncIterator[layer_pb2.SetAreasRequest]:
        for _ in range(ENDLESS_MESSAGES):
            yield layer_pb2.SetAreasRequest(areas=page)

    before = resident()
    answer = await peer.call(layer_pb2_grpc.LayerServiceStub(peer.channel).SetAreas, endless(), timeout=100)
    assert answer.count == ENDLESS_MESSAGES
    assert resident() - before < ALLOWED_GROWTH


async def test_an_endless_answer_that_nobody_reads_is_held_back(layers: tuple[Layers, Peer]) -> None:
    servicer, peer = layers
    request = layer_pb2.ListRemainingAreasRequest(layer_id="l")
    before = resident()
    call = layer_pb2_grpc.LayerServiceStub(peer.channel).ListRemainingAreas(request, metadata=peer.metadata())
    await call.read()
    last = -1
    while servicer.seen != last:  # until flow control stops it
        last = servicer.seen
        await asyncio.sleep(0.5)
    assert resident() - before < ALLOWED_GROWTH
    call.cancel()
    await asyncio.wait_for(servicer.ended.wait(), 60)
    assert servicer.running == 0


async def test_a_client_that_leaves_in_the_middle_ends_the_call(layers: tuple[Layers, Peer]) -> None:
    servicer, peer = layers
    stopped = asyncio.Event()

    async def stalling() -> AsyncIterator[layer_pb2.SetAreasRequest]:
        yield layer_pb2.SetAreasRequest(areas=areas())
        await stopped.wait()

    asked = asyncio.ensure_future(
        peer.call(layer_pb2_grpc.LayerServiceStub(peer.channel).SetAreas, stalling(), timeout=100)
    )
    async with asyncio.timeout(60):
        while servicer.running == 0:  # noqa: ASYNC110  # the server tells nobody
            await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.wait_for(servicer.ended.wait(), 60)
    stopped.set()
    assert servicer.running == 0


async def test_a_message_that_is_too_large_is_refused_before_it_is_read(layers: tuple[Layers, Peer]) -> None:
    servicer, peer = layers
    channel = aio.insecure_channel(
        f"unix:{ServiceSettings().socket('repository')}",
        options=[("grpc.default_authority", "localhost"), ("grpc.max_send_message_length", -1)],
    )
    large = layer_pb2.AppendJournalRequest(layer_id="l", sequence=1, entries=b"\0" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(grpc.RpcError) as caught:
        await layer_pb2_grpc.LayerServiceStub(channel).AppendJournal(large, metadata=peer.metadata(), timeout=60)
    await channel.close()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert servicer.seen == 0


async def test_a_field_that_is_too_large_is_refused_by_its_rule(layers: tuple[Layers, Peer]) -> None:
    servicer, peer = layers
    large = layer_pb2.AppendJournalRequest(
        holder=layer_pb2.Holder(job_id="j", attempt=1), layer_id="l", sequence=1, entries=b"\0" * (4 << 20)
    )
    with pytest.raises(RemoteError) as caught:
        await peer.call(layer_pb2_grpc.LayerServiceStub(peer.channel).AppendJournal, large)
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID_ARGUMENT, "INVALID_FIELD")
    assert servicer.seen == 0


async def test_a_stream_of_wrong_messages_is_refused_at_the_first(layers: tuple[Layers, Peer]) -> None:
    servicer, peer = layers

    async def wrong() -> AsyncIterator[layer_pb2.SetAreasRequest]:
        yield layer_pb2.SetAreasRequest(layer_id="x" * 2000)

    with pytest.raises(RemoteError) as caught:
        await peer.call(layer_pb2_grpc.LayerServiceStub(peer.channel).SetAreas, wrong(), timeout=60)
    assert caught.value.reason == "INVALID_FIELD"
    assert servicer.seen == 0
    assert servicer.running == 0
