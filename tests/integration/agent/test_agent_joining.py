"""An agent elsewhere joins from one file: its code is good once, for it, for a time, at the right tunnel only."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from sendense.access.v1 import access_pb2, access_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from sendense_access.config import AccessSettings
from sendense_access.enrollment import with_port
from sendense_access.errors import InvalidRequest
from sendense_access.main import build as open_access
from sendense_agent.config import AgentSettings
from sendense_agent.joining import JoinFailed, join
from sendense_db.migrate import upgrade
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import RemoteError
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.main import open_tunnel
from support import serving

pytestmark = pytest.mark.timeout(120)


class Node:
    """A node with the real access service and tunnel, as its administrator sees it."""

    def __init__(self, home: Path, peer: Peer) -> None:
        self.home = home
        self.peer = peer
        self.tunnel = TunnelSettings()

    async def enroll(self, agent_id: str, **fields: Any) -> dict[str, Any]:
        """Returns what is in the agent's file."""
        request = enrollment_pb2.CreateEnrollmentRequest(
            agent_id=agent_id, tunnel_address=fields.pop("tunnel_address", "127.0.0.1"), **fields
        )
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(self.peer.channel)
        made = await self.peer.call(stub.CreateEnrollment, request)
        return {
            name: getattr(made, name) for name in ("agent_id", "code", "tunnel_address", "tunnel_host_key", "jwks_json")
        }

    async def agents(self) -> list[str]:
        stub = access_pb2_grpc.AgentRegistryServiceStub(self.peer.channel)
        return [
            each.agent_id for each in (await self.peer.call(stub.ListAgents, access_pb2.ListAgentsRequest())).agents
        ]

    async def remove(self, agent_id: str) -> None:
        stub = access_pb2_grpc.AgentRegistryServiceStub(self.peer.channel)
        await self.peer.call(stub.RemoveAgent, access_pb2.RemoveAgentRequest(agent_id=agent_id))


@pytest.fixture
async def node(sendense_home: Path) -> AsyncIterator[Node]:
    access, tunnel = AccessSettings(), TunnelSettings()
    await asyncio.to_thread(upgrade, access.catalogue_url)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(await stack.enter_async_context(open_access(access)), access))
        await stack.enter_async_context(serving(await stack.enter_async_context(open_tunnel(tunnel)), tunnel))
        peer = unix_peer(access.socket("access"), access.admin_token_file)
        stack.push_async_callback(peer.close)
        yield Node(sendense_home, peer)


def elsewhere(home: Path, file: dict[str, Any]) -> AgentSettings:
    """Returns the settings of an agent on another machine, which has nothing but its file."""
    directory = home / "agent"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "enrollment.json").write_text(json.dumps(file))
    return AgentSettings(SENDENSE_HOME=home)


async def test_an_agent_joins_from_one_file_and_starts_again_without_it(node: Node, short_tmp: Path) -> None:
    home = short_tmp / "far"
    settings = elsewhere(home, await node.enroll("dc2"))
    joined = await join(settings)
    assert await node.agents() == ["dc2"]
    assert not settings.enrollment_file.exists()
    assert (joined.id, joined.tunnel_address()) == ("dc2", ("127.0.0.1", int(node.tunnel.port_file.read_text())))
    assert json.loads(joined.jwks_file.read_text()) == json.loads((node.home / "keys" / "jwks.json").read_text())
    assert stat.S_IMODE(joined.key_file.stat().st_mode) == 0o600
    again = await join(AgentSettings(SENDENSE_HOME=home))
    assert again == joined


async def test_the_program_joins_connects_and_is_cut_off_when_it_is_removed(node: Node, short_tmp: Path) -> None:
    home = short_tmp / "far"
    elsewhere(home, await node.enroll("dc2"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sendense_agent.main", env={**environment, "SENDENSE_HOME": str(home)}
    )
    door = node.tunnel.agents_dir / "dc2.sock"
    try:
        async with asyncio.timeout(60):
            while not door.exists():  # another process
                assert process.returncode is None
                await asyncio.sleep(0.05)
        await node.remove("dc2")
        async with asyncio.timeout(60):
            while door.exists():  # noqa: ASYNC110  # the connection's end closes it
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert not door.exists(), "its key is good no more"
    finally:
        process.terminate()
        await process.wait()


async def test_a_code_is_good_once_for_one_agent_and_only_the_newest(node: Node, short_tmp: Path) -> None:
    first = await node.enroll("dc2")
    second = await node.enroll("dc2")
    other = await node.enroll("dc3")
    for name, file in (
        ("older", first),
        ("guessed", {**second, "code": "guessed"}),
        ("another's", {**second, "code": other["code"]}),
    ):
        with pytest.raises(JoinFailed, match="one-time code"):
            await join(elsewhere(short_tmp / name, file))
    assert await node.agents() == []
    await join(elsewhere(short_tmp / "good", second))
    with pytest.raises(JoinFailed, match="one-time code"):
        await join(elsewhere(short_tmp / "thief", second))
    assert await node.agents() == ["dc2"]
    with pytest.raises(RemoteError) as taken:
        await node.enroll("dc2")
    assert taken.value.reason == "AGENT_EXISTS"


async def test_an_answer_that_was_lost_does_not_lock_the_agent_out(node: Node, short_tmp: Path) -> None:
    file = await node.enroll("dc2")
    await join(elsewhere(short_tmp / "far", file))
    await join(elsewhere(short_tmp / "far", file))
    assert await node.agents() == ["dc2"]


async def test_an_expired_code_is_refused(node: Node, short_tmp: Path) -> None:
    file = await node.enroll("dc2", lifetime_seconds=1)
    await asyncio.sleep(1.5)
    with pytest.raises(JoinFailed, match="one-time code"):
        await join(elsewhere(short_tmp / "far", file))
    with pytest.raises(RemoteError) as refused:
        await node.enroll("dc2", lifetime_seconds=8 * 24 * 3600)
    assert refused.value.reason == "INVALID_FIELD"


async def test_another_host_key_is_a_hard_stop_and_the_code_is_not_shown(node: Node, short_tmp: Path) -> None:
    file = await node.enroll("dc2")
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    with pytest.raises(JoinFailed, match="host key"):
        await join(elsewhere(short_tmp / "far", {**file, "tunnel_host_key": " ".join(other.split()[:2])}))
    await join(elsewhere(short_tmp / "good", file))


async def test_the_code_is_nowhere_but_in_the_file(node: Node, short_tmp: Path) -> None:
    file = await node.enroll("dc2")
    code = file["code"].encode()
    for path in node.home.rglob("*"):
        if path.is_file():
            assert code not in path.read_bytes(), path
    await join(elsewhere(short_tmp / "far", file))
    for path in (short_tmp / "far").rglob("*"):
        if path.is_file():
            assert code not in path.read_bytes(), path


def test_a_malformed_file_says_what_is_wrong(short_tmp: Path) -> None:
    settings = elsewhere(short_tmp, {"agent_id": "../x", "code": "secret-code"})
    with pytest.raises(JoinFailed, match="agent_id") as failed:
        asyncio.run(join(settings))
    assert "secret-code" not in str(failed.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("node.example", "node.example:443"),
        ("node.example:8022", "node.example:8022"),
        ("10.0.0.1", "10.0.0.1:443"),
        ("fd00::1", "[fd00::1]:443"),
        ("[fd00::1]", "[fd00::1]:443"),
        ("[fd00::1]:22", "[fd00::1]:22"),
    ],
)
def test_an_address_gets_the_tunnels_port_unless_it_has_one(address: str, expected: str) -> None:
    assert with_port(address, 443) == expected


@pytest.mark.parametrize("address", ["node:0", "node:65536", "node:ssh", ":22"])
def test_an_address_with_a_port_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        with_port(address, 443)
