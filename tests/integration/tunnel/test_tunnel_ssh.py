"""The tunnel against a real OpenSSH client and a real NBD server: what a holder of an agent's key can reach."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncssh
import nbd
import pytest
import structlog

from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_rpc.channel import unix_peer
from sendense_tunnel.host_key import HostKeyUnsafe, load_or_create_host_key
from sendense_tunnel.main import check_listener
from support import free_port
from tunnel_rig import MIB, Rig, make_key, tunnel_rig

EVIL_SOCKET = Path("/tmp/evil-sendense.sock")


@pytest.fixture
async def rig(sendense_home: Path) -> AsyncIterator[Rig]:
    async with tunnel_rig(sendense_home) as running:
        yield running


def _nbd_size(path: Path, name: str) -> int:
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix(str(path))
    size = int(handle.get_size())
    handle.shutdown()
    return size


def _nbd_list(path: Path) -> int:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(str(path))
    try:
        return int(handle.opt_list(lambda *_: 0))
    finally:
        handle.opt_abort()


def _write_and_read_back(path: Path, name: str, data: bytes) -> bytes:
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix(str(path))
    step = 4 * MIB
    for offset in range(0, len(data), step):
        handle.pwrite(data[offset : offset + step], offset)
    handle.flush()
    back = b"".join(bytes(handle.pread(step, offset)) for offset in range(0, len(data), step))
    handle.shutdown()
    return back


async def test_leased_export_can_be_written_and_read_byte_for_byte(rig: Rig) -> None:
    data = os.urandom(32 * MIB)
    async with rig.lane() as path:
        assert await asyncio.to_thread(_nbd_size, path, "mine") == 64 * MIB
        back = await asyncio.to_thread(_write_and_read_back, path, "mine", data)
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("name", ["theirs", "nobodys", "unknown", ""])
async def test_exports_not_leased_to_the_agent_are_refused(rig: Rig, name: str) -> None:
    async with rig.lane() as path:
        with pytest.raises(nbd.Error):
            await asyncio.to_thread(_nbd_size, path, name)
        assert await asyncio.to_thread(_nbd_size, path, "mine") == 64 * MIB


async def test_list_is_refused(rig: Rig) -> None:
    async with rig.lane() as path:
        with pytest.raises(nbd.Error, match="server replied with error"):
            await asyncio.to_thread(_nbd_list, path)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["127.0.0.1", "id"], id="exec"),
        pytest.param(["-tt", "127.0.0.1"], id="pty"),
        pytest.param(["127.0.0.1"], id="shell"),
        pytest.param(["-s", "127.0.0.1", "sftp"], id="sftp"),
        pytest.param(["-A", "127.0.0.1", "id"], id="agent-forwarding"),
        pytest.param(["-X", "127.0.0.1", "id"], id="x11-forwarding"),
        pytest.param(["-W", "127.0.0.1:22", "127.0.0.1"], id="other-port"),
        pytest.param(["-W", "nbd:22", "127.0.0.1"], id="nbd-other-port"),
        pytest.param(["-W", "localhost:10809", "127.0.0.1"], id="other-host"),
        pytest.param(["-N", "-R", "0:127.0.0.1:22", "127.0.0.1"], id="remote-listen"),
        pytest.param(["-N", "-R", f"{EVIL_SOCKET}:127.0.0.1:22", "127.0.0.1"], id="remote-unix-listen"),
        pytest.param(["-N", "-w", "0:0", "127.0.0.1"], id="tun"),
    ],
)
async def test_everything_else_a_key_holder_tries_is_refused(rig: Rig, arguments: list[str]) -> None:
    code, output = await rig.run_ssh(*arguments)
    assert code != 0, output
    assert "uid=" not in output
    assert not EVIL_SOCKET.exists()  # noqa: ASYNC240  # a stat


async def test_refusals_are_logged_with_the_agents_id(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        await rig.run_ssh("127.0.0.1", "id")
        await rig.run_ssh("-N", "-R", "0:127.0.0.1:22", "127.0.0.1")
        async with rig.lane() as path:
            with pytest.raises(nbd.Error):
                await asyncio.to_thread(_nbd_size, path, "theirs")
    refused = {(entry["what"], entry["agent"]) for entry in logs if entry["event"] == "refused"}
    assert {("session", "lab"), ("tcpip-forward", "lab"), ("nbd GO", "lab")} <= refused


async def test_other_unix_sockets_of_the_node_are_out_of_reach(rig: Rig) -> None:
    async with rig.lane(str(rig.settings.socket("access"))) as path:
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()


async def test_an_unknown_key_and_another_agents_name_are_refused(rig: Rig, short_tmp: Path) -> None:
    stranger, second = short_tmp / "stranger", short_tmp / "second"
    make_key(stranger)
    rig.registry.enroll("second", make_key(second))
    for user, key in (("lab", stranger), ("lab", second), ("second", rig.key), ("root", rig.key)):
        code, output = await rig.run_ssh("-N", "127.0.0.1", user=user, key=key)
        assert code == 255
        assert "Permission denied (publickey)" in output


async def test_a_changed_host_key_stops_the_client(rig: Rig, short_tmp: Path) -> None:
    line = rig.known_hosts.read_text().split()
    other = make_key(short_tmp / "other-host-key").split()
    rig.known_hosts.write_text(f"{line[0]} {other[0]} {other[1]}\n")
    code, output = await rig.run_ssh("-N", "127.0.0.1")
    assert code == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in output


async def test_only_aes_gcm_is_offered(rig: Rig) -> None:
    code, output = await rig.run_ssh("-N", "-c", "chacha20-poly1305@openssh.com,aes128-ctr", "127.0.0.1")
    assert code == 255
    assert "no matching cipher found" in output


async def _echo_server(path: Path, greeting: bytes) -> asyncio.AbstractServer:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting + await reader.readexactly(4))
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, str(path))


async def _ask(door: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(door))
    writer.write(b"ping")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


async def _reachable(rig: Rig) -> dict[str, str]:
    peer = unix_peer(rig.settings.socket("tunnel"), rig.settings.identity_file("backup"))
    stub = tunnel_pb2_grpc.TunnelServiceStub(peer.channel)
    answer = await peer.call(stub.ListConnections, tunnel_pb2.ListConnectionsRequest())
    await peer.close()
    return {entry.agent_id: entry.socket_path for entry in answer.connections}


async def _until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process's file system
            await asyncio.sleep(0.02)


async def test_control_goes_to_the_newest_offer_and_falls_back(rig: Rig, short_tmp: Path) -> None:
    door = rig.settings.agents_dir / "lab.sock"
    async with AsyncExitStack() as stack:
        for index in (1, 2):
            server = await _echo_server(short_tmp / f"agent-{index}.sock", f"agent {index} ".encode())
            stack.callback(server.close)
        first, second = await rig.connect(), await rig.connect()
        await first.forward_remote_path("agent-control", str(short_tmp / "agent-1.sock"))
        assert await _reachable(rig) == {"lab": str(door)}
        assert stat.S_IMODE(door.stat().st_mode) == 0o600
        assert await _ask(door) == b"agent 1 ping"
        await second.forward_remote_path("agent-control", str(short_tmp / "agent-2.sock"))
        assert await _ask(door) == b"agent 2 ping"
        assert len(await _reachable(rig)) == 1
        second.abort()
        await second.wait_closed()
        await asyncio.sleep(0.1)
        assert await _ask(door) == b"agent 1 ping"
        first.close()
        await first.wait_closed()
        await _until(lambda: not door.exists())
        assert await _reachable(rig) == {}


async def test_control_is_offered_once_a_connection(rig: Rig, short_tmp: Path) -> None:
    async with await rig.connect() as connection:
        await connection.forward_remote_path("agent-control", str(short_tmp / "a.sock"))
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_path("agent-control", str(short_tmp / "b.sock"))


async def test_health_looks_at_the_listener(rig: Rig) -> None:
    await check_listener("127.0.0.1", rig.port)
    with pytest.raises(OSError, match="Connect call failed"):
        await check_listener("127.0.0.1", free_port())


async def test_host_key_is_kept_private_and_made_once(rig: Rig) -> None:
    path = rig.settings.host_key_file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    load_or_create_host_key(path)
    assert path.read_bytes() == before
    path.chmod(0o644)
    with pytest.raises(HostKeyUnsafe):
        load_or_create_host_key(path)
