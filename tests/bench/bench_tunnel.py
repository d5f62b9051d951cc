"""A copy through the real tunnel against the same on plain sockets, by what carries the lanes and how many there are.

The tunnel is its own process, as on a node. The engine reads from memory and writes into the tuned daemon's image in
memory. Two captures run at once, each in a lane, so that several lanes can show what they are worth.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from copy_servers import CopyServers, copy_servers
from figures import GIB, INTERVALS, Goal, Row, ratios, run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from fakes.tunnel_peers import AgentRegistryFake, ExportCatalogueFake
from sendense_access.keys import SigningKey, write_workload_identities
from sendense_agent.config import AgentSettings
from sendense_agent.link import Dialling
from sendense_agent.own_key import load_or_create_key
from sendense_agent.uplink import Uplink
from sendense_blockio.endpoint import Endpoint
from sendense_blockio.engine import CopyOptions
from sendense_blockio.extents import Extent
from sendense_tunnel.config import TunnelSettings
from support import serving

SIZE = GIB // 2
RUNS = 3
START_SECONDS = 30.0
OPTIONS = CopyOptions()
CAPTURES = 2
CARRIERS = (("asyncssh", 2), ("openssh", 1), ("openssh", 2))


def rows() -> list[Row]:
    """Measures all figures."""
    with copy_servers(SIZE) as servers, tempfile.TemporaryDirectory(dir="/tmp", prefix="bt-") as home:
        os.environ["SENDENSE_HOME"] = home
        return asyncio.run(_measure(servers, Path(home)))


async def _measure(servers: CopyServers, home: Path) -> list[Row]:
    write_workload_identities(SigningKey.load_or_create(home / "keys"), home / "keys")
    settings = TunnelSettings()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    settings.nbd_socket.symlink_to(servers.directory / "tuned.sock")
    registry, exports = AgentRegistryFake(), ExportCatalogueFake()
    agent = AgentSettings()
    registry.enroll("lab", load_or_create_key(agent.key_file, "x").export_public_key().decode())
    exports.leases = {"disk": "lab"}
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(registry.service(), settings))
        await stack.enter_async_context(serving(exports.service(), settings))
        await stack.enter_async_context(_tunnel(settings))
        carriers = {}
        for carrier, lanes in CARRIERS:
            uplink = await stack.enter_async_context(_uplink(agent, carrier, lanes, home))
            carriers[f"{carrier}, {lanes} lane{'s' * (lanes > 1)}"] = uplink
        times: dict[str, list[float]] = {"plain": [], **{name: [] for name in carriers}}
        for number in range(RUNS + 1):
            for name in ("plain", *carriers):
                began = time.monotonic()
                seconds = await _copies(servers, carriers.get(name))
                if number:
                    times[name].append(seconds)
                    INTERVALS.setdefault(name, []).append((began, time.monotonic()))
    measured = [Row.of("two copies, plain sockets", _rates(times["plain"]), unit="GiB/s")]
    for name in carriers:
        measured.append(Row.of(f"two copies, tunnel ({name})", _rates(times[name]), unit="GiB/s"))
        goal = Goal(0.25) if name == "openssh, 2 lanes" else None
        measured.append(
            Row.of(
                f"tunnel ({name})", ratios(times["plain"], times[name]), goal=goal, against="plain sockets", way=name
            )
        )
    return measured


def _rates(times: list[float]) -> list[float]:
    return [SIZE / GIB / each for each in times]


@contextlib.asynccontextmanager
async def _tunnel(settings: TunnelSettings) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sendense_tunnel.main")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not settings.port_file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the tunnel does not listen")
            await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def _uplink(agent: AgentSettings, carrier: str, lanes: int, home: Path) -> AsyncIterator[Uplink]:
    directory = home / f"{carrier}-{lanes}"
    directory.mkdir()
    grpc_socket = directory / "agent.sock"
    grpc_socket.touch()
    key = load_or_create_key(agent.key_file, "x")
    dialling = Dialling("lab", key, agent.host_key_file, agent.tunnel_address)
    uplink = Uplink(
        dialling, grpc_socket, lanes, directory, openssh_key=agent.key_file if carrier == "openssh" else None
    )
    async with uplink.running():
        for lane in uplink._lanes:
            await asyncio.wait_for(lane.link.up.wait(), START_SECONDS)
        yield uplink


async def _copies(servers: CopyServers, uplink: Uplink | None) -> float:
    """Copies the two halves of the disk at once; returns seconds."""
    half = SIZE // CAPTURES
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(CAPTURES) as pool:

        async def one(number: int) -> None:
            areas = [Extent(number * half, half)]
            async with contextlib.AsyncExitStack() as stack:
                target = servers.target("tuned")
                if uplink is not None:
                    target = Endpoint.unix(await stack.enter_async_context(uplink.lane()), "disk")
                await loop.run_in_executor(pool, lambda: servers.engine(OPTIONS, areas, target=target))

        began = time.monotonic()
        await asyncio.gather(*map(one, range(CAPTURES)))
        return time.monotonic() - began


if __name__ == "__main__":
    random.seed(1)
    run_script(__doc__, rows)
