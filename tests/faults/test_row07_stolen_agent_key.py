"""Row 7: a holder of an agent's key reaches that agent's exports, nothing else; other attempts are refused and logged.

OpenSSH's own client tries; options in an authorized_keys file would not bind the tunnel's server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import nbd
import pytest
import structlog

from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_rpc.channel import unix_peer
from sendense_tunnel.connections import Connections
from tunnel_rig import Rig, tunnel_rig

pytestmark = pytest.mark.timeout(120)

EVIL = "/tmp/evil-sendense-row07.sock"


@pytest.fixture
async def rig(sendense_home: Path) -> AsyncIterator[Rig]:
    async with tunnel_rig(sendense_home) as running:
        yield running


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        pytest.param("session", ["127.0.0.1", "id"], id="exec"),
        pytest.param("session", ["-tt", "127.0.0.1"], id="pty"),
        pytest.param("session", ["127.0.0.1"], id="shell"),
        pytest.param("session", ["-s", "127.0.0.1", "sftp"], id="sftp"),
        pytest.param("session", ["-s", "127.0.0.1", "netconf"], id="another subsystem"),
        pytest.param("session", ["-A", "127.0.0.1", "id"], id="agent forwarding"),
        pytest.param("session", ["-X", "127.0.0.1", "id"], id="X11 forwarding"),
        pytest.param("direct-tcpip", ["-W", "127.0.0.1:22", "127.0.0.1"], id="another port"),
        pytest.param("direct-tcpip", ["-W", "nbd:22", "127.0.0.1"], id="another port of the NBD server"),
        pytest.param("direct-tcpip", ["-W", "localhost:10809", "127.0.0.1"], id="another host"),
        pytest.param("direct-tcpip", ["-W", "169.254.169.254:80", "127.0.0.1"], id="a cloud's metadata"),
        pytest.param("tcpip-forward", ["-N", "-R", "0:127.0.0.1:22", "127.0.0.1"], id="remote listen"),
        pytest.param("tcpip-forward", ["-N", "-R", "0", "127.0.0.1"], id="remote dynamic listen"),
        pytest.param("streamlocal-forward", ["-N", "-R", f"{EVIL}:127.0.0.1:22", "127.0.0.1"], id="remote socket"),
        pytest.param("tun", ["-N", "-w", "0:0", "127.0.0.1"], id="network device"),
    ],
)
async def test_an_attempt_is_refused_and_logged(rig: Rig, what: str, arguments: list[str]) -> None:
    with structlog.testing.capture_logs() as logs:
        code, output = await rig.run_ssh(*arguments)
    assert code != 0, output
    assert "uid=" not in output
    assert not Path(EVIL).exists()  # noqa: ASYNC240  # a stat
    refused = [entry for entry in logs if entry["event"] == "refused" and entry["agent"] == "lab"]
    # Where OpenSSH needs a device or display that this machine lacks, it gives up before it asks the server.
    assert [entry["what"] for entry in refused][:1] in ([what], []), refused
    if not refused:
        assert what == "tun", output


async def test_a_unix_socket_of_the_node_is_out_of_reach(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        async with rig.lane(str(rig.settings.socket("access"))) as path:
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await asyncio.wait_for(reader.read(1), 30) == b""
            writer.close()
    assert any(entry.get("what") == "direct-streamlocal" and entry["agent"] == "lab" for entry in logs)


@pytest.mark.parametrize("name", ["theirs", "nobodys", "unknown"])
async def test_exports_of_others_are_refused_and_logged(rig: Rig, name: str) -> None:
    def ask(path: Path) -> None:
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.connect_unix(str(path))

    with structlog.testing.capture_logs() as logs:
        async with rig.lane() as path:
            with pytest.raises(nbd.Error):
                await asyncio.to_thread(ask, path)
    assert any(str(entry.get("what", "")).startswith("nbd ") and entry["agent"] == "lab" for entry in logs)


async def test_the_enrolling_user_gets_nothing_without_a_code_and_nothing_with_a_wrong_one(rig: Rig) -> None:
    code, output = await rig.run_ssh("-N", "127.0.0.1", user="enroll:lab")
    assert code == 255
    assert "Permission denied (password)" in output, "no key is good for that user"
    with structlog.testing.capture_logs() as logs, pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            "127.0.0.1",
            rig.port,
            config=None,
            username="enroll:lab",
            password="guessed ssh-ed25519 AAAA",
            client_keys=None,
            agent_path=None,
            known_hosts=str(rig.known_hosts),
        )
    assert any(entry.get("what") == "code" for entry in logs)


async def test_an_agents_connections_are_bounded_and_end_with_its_key(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense_tunnel.connections.MAX_OF_AGENT", 3)
    kept = [await rig.connect() for _ in range(3)]
    with structlog.testing.capture_logs() as logs:
        try:
            fourth = await rig.connect()
            await asyncio.wait_for(fourth.wait_closed(), 60)
        except (asyncssh.Error, OSError):
            pass
    assert any(entry.get("what") == "connection" and entry["agent"] == "lab" for entry in logs)
    peer = unix_peer(rig.settings.socket("tunnel"), rig.settings.identity_file("access"))
    stub = tunnel_pb2_grpc.TunnelServiceStub(peer.channel)
    cut = await peer.call(stub.DisconnectAgent, tunnel_pb2.DisconnectAgentRequest(agent_id="lab"))
    await peer.close()
    assert cut.connections == 3
    for connection in kept:
        await asyncio.wait_for(connection.wait_closed(), 60)


async def test_a_removed_key_is_noticed_without_being_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sendense_tunnel.connections.SWEEP_SECONDS", 0.05)
    from sendense_tunnel.clients import AgentRegistry

    access = unix_peer(rig.settings.socket("access"), rig.settings.identity_file("tunnel"))
    registry, connections = AgentRegistry(access), Connections()
    async with await rig.connect() as connection:
        (line,) = rig.registry.keys
        fake: object = connection
        connections.identify(fake, "lab", line)  # type: ignore[arg-type]
        sweeping = asyncio.create_task(connections.keep_enrolled(registry))
        await asyncio.sleep(0.3)
        assert not connection.is_closed(), "it is enrolled"
        rig.registry.keys.clear()
        await asyncio.wait_for(connection.wait_closed(), 60)
        sweeping.cancel()
    await access.close()
