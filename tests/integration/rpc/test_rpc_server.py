"""The one bootstrap: door, health, reflection, drain, over a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_access.keys import SigningKey
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import Kind, RemoteError, SendenseError
from sendense_rpc.identity import current_caller
from sendense_rpc.server import Service, Servicer, build_server
from sendense_rpc.settings import ServiceSettings
from support import serving


class Tunnel(tunnel_pb2_grpc.TunnelServiceServicer):
    """A servicer that does what the test tells it."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def GetTunnel(self, request: tunnel_pb2.GetTunnelRequest, context: Any) -> tunnel_pb2.Tunnel:
        raise AssertionError("not used here")

    async def DisconnectAgent(
        self, request: tunnel_pb2.DisconnectAgentRequest, context: Any
    ) -> tunnel_pb2.DisconnectAgentResponse:
        raise AssertionError("not used here")

    async def ListConnections(
        self, request: tunnel_pb2.ListConnectionsRequest, context: Any
    ) -> tunnel_pb2.ListConnectionsResponse:
        self.entered.set()
        await self.go_on.wait()
        if self.failure:
            raise self.failure
        caller = current_caller()
        assert caller is not None
        return tunnel_pb2.ListConnectionsResponse(connections=[tunnel_pb2.Connection(agent_id=caller.subject)])


async def _fine() -> None:
    return


def _service(servicer: Tunnel, check: Any = _fine) -> Service:
    register = tunnel_pb2_grpc.add_TunnelServiceServicer_to_server
    return Service("tunnel", [Servicer("sendense.tunnel.v1.TunnelService", servicer, register)], check)


@pytest.fixture
async def tunnel(sendense_home: Path) -> AsyncIterator[tuple[Tunnel, Peer]]:
    servicer, settings = Tunnel(), ServiceSettings()
    async with serving(_service(servicer), settings):
        peer = unix_peer(settings.socket("tunnel"), settings.identity_file("backup"))
        yield servicer, peer
        await peer.close()


def _call(peer: Peer) -> Any:
    stub = tunnel_pb2_grpc.TunnelServiceStub(peer.channel)
    return peer.call(stub.ListConnections, tunnel_pb2.ListConnectionsRequest(), timeout=5)


async def test_the_servicer_knows_who_calls(tunnel: tuple[Tunnel, Peer]) -> None:
    answer = await _call(tunnel[1])
    assert answer.connections[0].agent_id == "service:backup"


async def test_a_domain_error_arrives_whole(tunnel: tuple[Tunnel, Peer]) -> None:
    tunnel[0].failure = SendenseError(
        "disk 3 is odd",
        kind=Kind.ABORTED,
        reason="ODD_DISK",
        help="Look at it.",
        retryable=True,
        metadata={"disk": "3"},
    )
    with pytest.raises(RemoteError) as caught:
        await _call(tunnel[1])
    error = caught.value
    assert (error.message, error.kind, error.reason, error.help) == (
        "disk 3 is odd",
        Kind.ABORTED,
        "ODD_DISK",
        "Look at it.",
    )
    assert error.retryable
    assert error.metadata == {"disk": "3"}


async def test_an_unexpected_error_tells_the_caller_nothing_but_an_incident(tunnel: tuple[Tunnel, Peer]) -> None:
    tunnel[0].failure = RuntimeError("password is hunter2")
    with pytest.raises(RemoteError) as caught:
        await _call(tunnel[1])
    assert caught.value.reason == "INTERNAL"
    assert "hunter2" not in str(caught.value.metadata) + caught.value.message
    assert caught.value.metadata["incident"] in caught.value.message


async def test_an_outsiders_token_does_not_open_an_internal_rpc(
    tunnel: tuple[Tunnel, Peer], sendense_home: Path
) -> None:
    token = sendense_home / "admin.token"
    token.write_text(SigningKey.load_or_create(sendense_home / "keys").sign("ann", "admin", 60))
    peer = unix_peer(ServiceSettings().socket("tunnel"), token)
    with pytest.raises(RemoteError) as caught:
        await _call(peer)
    await peer.close()
    assert caught.value.reason == "ROLE_MISSING"
    assert not tunnel[0].entered.is_set()


async def test_the_socket_is_the_owners_alone(tunnel: tuple[Tunnel, Peer]) -> None:
    assert ServiceSettings().socket("tunnel").stat().st_mode & 0o777 == 0o600


async def test_an_absent_service_is_unavailable_and_worth_a_retry(sendense_home: Path) -> None:
    settings = ServiceSettings()
    peer = unix_peer(settings.socket("tunnel"), settings.identity_file("backup"))
    with pytest.raises(RemoteError) as caught:
        await _call(peer)
    await peer.close()
    assert caught.value.reason == "SERVICE_UNAVAILABLE"
    assert caught.value.retryable


async def test_health_is_the_result_of_a_look(sendense_home: Path) -> None:
    broken = asyncio.Event()

    async def check() -> None:
        if broken.is_set():
            raise OSError("the disk is gone")

    settings = ServiceSettings()
    async with (
        serving(_service(Tunnel(), check), settings),
        aio.insecure_channel(
            f"unix:{settings.socket('tunnel')}", options=[("grpc.default_authority", "localhost")]
        ) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        broken.set()
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_running_call_is_finished_when_the_service_stops(sendense_home: Path) -> None:
    servicer, settings = Tunnel(), ServiceSettings()
    servicer.go_on.clear()
    async with serving(_service(servicer), settings):
        peer = unix_peer(settings.socket("tunnel"), settings.identity_file("backup"))
        call = asyncio.create_task(_call(peer))
        await servicer.entered.wait()
        asyncio.get_running_loop().call_later(0.2, servicer.go_on.set)
    assert (await call).connections
    await peer.close()
    assert not settings.socket("tunnel").exists()


def test_a_servicer_that_lacks_an_rpc_does_not_start(sendense_home: Path) -> None:
    class Agent(agent_pb2_grpc.AgentServiceServicer):
        async def ListVms(self, request: agent_pb2.ListVmsRequest, context: Any) -> agent_pb2.ListVmsResponse:
            return agent_pb2.ListVmsResponse()

    servicer = Servicer("sendense.agent.v1.AgentService", Agent(), agent_pb2_grpc.add_AgentServiceServicer_to_server)
    with pytest.raises(TypeError, match="does not implement"):
        build_server([servicer], ServiceSettings(), check=_fine)
