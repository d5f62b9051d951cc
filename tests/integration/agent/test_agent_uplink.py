"""The agent's connections: they come back, they pin the host key, a dead link is noticed, and programs end cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncssh
import nbd
import pytest
import structlog

from fakes.nbd_server import make_qcow2, storage_daemon
from fakes.tunnel_peers import AgentRegistryFake, ExportCatalogueFake
from sendense_agent.config import AgentSettings
from sendense_agent.errors import CaptureFailed, TunnelDown
from sendense_agent.link import KEEPALIVE_MISSES, KEEPALIVE_SECONDS, Dialling
from sendense_agent.own_key import load_or_create_key
from sendense_agent.uplink import Uplink
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.main import open_tunnel
from support import free_port, serving

MIB = 1 << 20


@pytest.fixture
async def settings(sendense_home: Path) -> AsyncIterator[TunnelSettings]:
    """What the tunnel needs around it; the tunnel itself is started by each test."""
    found = TunnelSettings()
    registry, exports = AgentRegistryFake(), ExportCatalogueFake()
    registry.enroll("lab", load_or_create_key(AgentSettings().key_file, "x").export_public_key().decode())
    exports.leases = {"mine": "lab"}
    image = make_qcow2(sendense_home / "mine.qcow2", 8 * MIB)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(registry.service(), found))
        await stack.enter_async_context(serving(exports.service(), found))
        await stack.enter_async_context(storage_daemon(found.nbd_socket, {"mine": image}))
        yield found


@pytest.fixture(params=["asyncssh", "openssh"], autouse=True)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds whatever carries the lanes."""
    monkeypatch.setenv("SENDENSE_AGENT_CARRIER", request.param)


def uplink_of(settings: AgentSettings, lanes: int = 2) -> Uplink:
    key = load_or_create_key(settings.key_file, "x")
    dialling = Dialling("lab", key, settings.host_key_file, settings.tunnel_address)
    settings.sockets_dir.mkdir(parents=True, exist_ok=True)
    settings.socket("agent").touch()
    return Uplink(dialling, settings.socket("agent"), lanes, settings.sockets_dir, openssh_key=settings.openssh_key)


def size_through(socket: Path) -> int:
    handle = nbd.NBD()
    handle.set_export_name("mine")
    handle.connect_unix(str(socket))
    return int(handle.get_size())


async def test_all_connections_come_back_after_the_tunnel_was_away(settings: TunnelSettings) -> None:
    agent = AgentSettings()
    uplink = uplink_of(agent)
    door = settings.agents_dir / "lab.sock"
    async with uplink.running():
        for _ in range(2):
            async with open_tunnel(settings):
                await asyncio.wait_for(uplink.control.up.wait(), 20)
                assert door.exists()
                async with uplink.lane() as socket:
                    assert await asyncio.to_thread(size_through, socket) == 8 * MIB
            assert not door.exists()
            async with asyncio.timeout(5):
                while uplink.control.up.is_set():  # noqa: ASYNC110  # an Event has no way to wait for its clearing
                    await asyncio.sleep(0.02)


async def test_lanes_are_shared_evenly(settings: TunnelSettings) -> None:
    uplink = uplink_of(AgentSettings())
    async with open_tunnel(settings), uplink.running():
        for lane in uplink._lanes:
            await asyncio.wait_for(lane.link.up.wait(), 10)
        async with uplink.lane() as first, uplink.lane() as second, uplink.lane() as third:
            assert len({first, second}) == 2
            assert third in {first, second}


async def test_a_lane_on_which_a_copy_stalled_is_replaced_and_others_carry_on(settings: TunnelSettings) -> None:
    uplink = uplink_of(AgentSettings())
    async with open_tunnel(settings), uplink.running():
        for lane in uplink._lanes:
            await asyncio.wait_for(lane.link.up.wait(), 60)
        held = nbd.NBD()
        held.set_export_name("mine")

        async def stalls() -> None:
            async with uplink.lane() as socket:
                await asyncio.to_thread(held.connect_unix, str(socket))
                raise CaptureFailed("nothing moved", side="target", cause="COPY_STALLED", retryable=True)

        with pytest.raises(CaptureFailed):
            await stalls()
        async with asyncio.timeout(60):
            while not (held.aio_is_dead() or held.aio_is_closed()):  # what it carried has ended
                with contextlib.suppress(nbd.Error):
                    await asyncio.to_thread(held.poll, 100)
        for lane in uplink._lanes:
            await asyncio.wait_for(lane.link.up.wait(), 60)
            assert await asyncio.to_thread(size_through, lane.socket) == 8 * MIB


async def test_an_agent_on_the_node_may_skip_the_lanes(
    settings: TunnelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_AGENT_DATA_PATH", "direct")
    agent = AgentSettings()
    uplink = Uplink(
        Dialling("lab", load_or_create_key(agent.key_file, "x"), agent.host_key_file, agent.tunnel_address),
        agent.socket("agent"),
        agent.lane_count,
        agent.sockets_dir,
        direct=agent.direct_socket,
    )
    agent.sockets_dir.mkdir(parents=True, exist_ok=True)
    agent.socket("agent").touch()
    async with open_tunnel(settings), uplink.running():
        await asyncio.wait_for(uplink.control.up.wait(), 60)
        assert not list(agent.sockets_dir.glob("*-lane-*"))
        async with uplink.lane() as socket:
            assert socket == settings.nbd_socket
            assert await asyncio.to_thread(size_through, socket) == 8 * MIB


async def test_another_host_key_is_a_hard_stop_that_is_logged(settings: TunnelSettings) -> None:
    agent = AgentSettings()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key()
    async with open_tunnel(settings):
        agent.host_key_file.write_bytes(other)
        with structlog.testing.capture_logs() as logs:
            uplink = uplink_of(agent, lanes=1)
            async with uplink.running():
                async with asyncio.timeout(10):
                    while not any("not the pinned one" in entry["event"] for entry in logs):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert not uplink.control.up.is_set()
        assert not (settings.agents_dir / "lab.sock").exists()


async def test_without_a_tunnel_a_lane_is_refused_after_a_while(
    settings: TunnelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense_agent.uplink.LANE_WAIT_SECONDS", 0.3)
    monkeypatch.setenv("SENDENSE_AGENT_TUNNEL", f"127.0.0.1:{free_port()}")
    uplink = uplink_of(AgentSettings())
    async with uplink.running():
        with pytest.raises(TunnelDown):
            async with uplink.lane():
                pass


def test_a_dead_link_is_noticed_within_30_seconds() -> None:
    assert KEEPALIVE_SECONDS * (KEEPALIVE_MISSES + 1) < 30


async def test_a_black_holed_link_is_given_up(settings: TunnelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnel's process is stopped (SIGSTOP): connections stay open and nothing answers any more."""
    monkeypatch.setattr("sendense_agent.link.KEEPALIVE_SECONDS", 0.2)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sendense_tunnel.main")
    try:
        uplink = uplink_of(AgentSettings(), lanes=1)
        async with uplink.running():
            await asyncio.wait_for(uplink.control.up.wait(), 20)
            process.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(8):
                while uplink.control.up.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            process.send_signal(signal.SIGCONT)
            await asyncio.wait_for(uplink.control.up.wait(), 30)
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_the_programs_start_meet_and_leave_nothing(settings: TunnelSettings) -> None:
    environment = dict(os.environ)
    programs = [
        await asyncio.create_subprocess_exec(sys.executable, "-m", name, env=environment)
        for name in ("sendense_agent.main", "sendense_tunnel.main")
    ]
    agent = AgentSettings()
    try:
        async with asyncio.timeout(20):
            while not (settings.agents_dir / "lab.sock").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        for program in programs:
            program.send_signal(signal.SIGINT)
        codes = [await asyncio.wait_for(program.wait(), 20) for program in programs]
    assert codes == [0, 0]
    left = [path.name for path in settings.run_dir.rglob("*.sock") if path.is_socket()]
    assert sorted(left) == ["access.sock", "exports.sock", "nbd.sock"]
    assert not settings.port_file.exists()
    assert not agent.socket("agent").exists()
