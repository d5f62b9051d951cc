"""Calls that a service only passes on: every kind of RPC, errors whole, callers verified at both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway_fakes import Seen, recorder
from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense.tunnel.v1 import tunnel_pb2_grpc
from sendense_access.keys import SigningKey
from sendense_rpc.channel import Peer
from sendense_rpc.errors import Kind, RemoteError, SendenseError
from sendense_rpc.identity import Caller, current_caller, set_caller
from sendense_rpc.limits import Limits
from sendense_rpc.relay import TO, Relay
from sendense_rpc.server import Service, Servicer
from sendense_rpc.settings import ServiceSettings
from support import serving

AGENT = "sendense.agent.v1.AgentService"
TUNNEL = "sendense.tunnel.v1.TunnelService"


class Agent(type(recorder(agent_pb2_grpc.AgentServiceServicer, AGENT, Seen(), {}))):  # type: ignore[misc]
    """Answers each kind of RPC and notices its end."""

    def __init__(self) -> None:
        self.callers: list[Caller | None] = []
        self.ended = asyncio.Event()

    async def ListVms(self, request: agent_pb2.ListVmsRequest, context: Any) -> agent_pb2.ListVmsResponse:
        self.callers.append(current_caller())
        if request.name == "odd":
            raise SendenseError("it is odd", kind=Kind.ABORTED, reason="ODD", help="Look.", metadata={"vm": "odd"})
        return agent_pb2.ListVmsResponse(vms=[agent_pb2.Vm(name=request.name)])

    async def PlanCapture(
        self, request: agent_pb2.PlanCaptureRequest, context: Any
    ) -> AsyncIterator[agent_pb2.PlanPage]:
        try:
            while True:
                yield agent_pb2.PlanPage(changed_bytes=1)
        finally:
            self.ended.set()

    async def Capture(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[agent_pb2.CaptureEvent]:
        async for request in requests:
            yield agent_pb2.CaptureEvent(progress=agent_pb2.CaptureProgress(done_bytes=len(request.areas)))


async def _fine() -> None:
    return


@pytest.fixture
async def agent(sendense_home: Path) -> AsyncIterator[Agent]:
    """An agent behind a tunnel that knows it as `far`."""
    settings, agent = ServiceSettings(), Agent()

    def find(name: str) -> Path:
        if name != "far":
            raise SendenseError(f"no '{name}'", kind=Kind.UNAVAILABLE, reason="NO_AGENT", help="Start it.")
        return settings.socket("agent")

    relay = Relay(AGENT, find)
    tunnel = recorder(tunnel_pb2_grpc.TunnelServiceServicer, TUNNEL, Seen(), {})
    own = Servicer(TUNNEL, tunnel, tunnel_pb2_grpc.add_TunnelServiceServicer_to_server)
    behind = Servicer(AGENT, agent, agent_pb2_grpc.add_AgentServiceServicer_to_server)
    async with (
        serving(Service("agent", [behind], _fine), settings),
        serving(Service("tunnel", [own], _fine, relays=[relay]), settings),
    ):
        yield agent
        await relay.close()


@pytest.fixture
async def peer(sendense_home: Path) -> AsyncIterator[Peer]:
    settings = ServiceSettings()
    peer = Peer(f"unix:{settings.socket('tunnel')}", settings.identity_file("backup"), further=((TO, "far"),))
    yield peer
    await peer.close()


def stub(peer: Peer) -> Any:
    return agent_pb2_grpc.AgentServiceStub(peer.channel)


async def test_a_call_is_passed_on_and_its_caller_verified_again(agent: Agent, peer: Peer) -> None:
    set_caller(Caller("ann", "operator", "t", Limits(frozenset({"web"}))))
    answer = await peer.call(stub(peer).ListVms, agent_pb2.ListVmsRequest(name="web"), timeout=60)
    set_caller(None)
    assert [vm.name for vm in answer.vms] == ["web"]
    (caller,) = agent.callers
    assert caller is not None
    assert (caller.subject, caller.role) == ("service:backup", "internal")
    assert caller.limits == Limits(frozenset({"web"}))


async def test_an_error_arrives_whole(agent: Agent, peer: Peer) -> None:
    with pytest.raises(RemoteError) as caught:
        await peer.call(stub(peer).ListVms, agent_pb2.ListVmsRequest(name="odd"), timeout=60)
    error = caught.value
    assert (error.message, error.kind, error.reason, error.help) == ("it is odd", Kind.ABORTED, "ODD", "Look.")
    assert error.metadata == {"vm": "odd"}


async def test_streams_pass_both_ways(agent: Agent, peer: Peer) -> None:
    async def requests() -> AsyncIterator[agent_pb2.CaptureRequest]:
        for count in (3, 5000):
            areas = [agent_pb2.PlannedArea(offset=n, length=1) for n in range(count)]
            yield agent_pb2.CaptureRequest(areas=areas)

    done = [event.progress.done_bytes async for event in peer.stream(stub(peer).Capture, requests(), timeout=60)]
    assert done == [3, 5000]


async def test_a_caller_that_leaves_ends_the_call_behind(agent: Agent, peer: Peer) -> None:
    request = agent_pb2.PlanCaptureRequest()
    request.vm.vcenter_uuid = request.vm.vm_uuid = "42000000-0000-4000-8000-000000000000"
    request.snapshot_moref = "snapshot-1"
    request.alignment_bytes = 65536
    request.device_key = 2000
    async with aclosing(peer.stream(stub(peer).PlanCapture, request, timeout=60)) as pages:  # type: ignore[type-var]
        async for page in pages:
            assert page.changed_bytes == 1
            break
    await asyncio.wait_for(agent.ended.wait(), 60)


async def test_who_is_not_there_is_named_and_nobody_else_is_reached(agent: Agent, sendense_home: Path) -> None:
    settings = ServiceSettings()
    for further in ((), ((TO, "other"),), ((TO, "../far"),)):
        peer = Peer(f"unix:{settings.socket('tunnel')}", settings.identity_file("backup"), further=further)
        with pytest.raises(RemoteError) as caught:
            await peer.call(stub(peer).ListVms, agent_pb2.ListVmsRequest(), timeout=60)
        await peer.close()
        assert caught.value.reason == "NO_AGENT"
    assert agent.callers == []


async def test_a_persons_token_is_refused_at_the_relay(agent: Agent, sendense_home: Path) -> None:
    token = sendense_home / "person.token"
    token.write_text(SigningKey.load_or_create(sendense_home / "keys").sign("ann", "admin", 60))
    peer = Peer(f"unix:{ServiceSettings().socket('tunnel')}", token, further=((TO, "far"),))
    with pytest.raises(RemoteError) as caught:
        await peer.call(stub(peer).ListVms, agent_pb2.ListVmsRequest(), timeout=60)
    await peer.close()
    assert caught.value.reason == "ROLE_MISSING"
    assert agent.callers == []
