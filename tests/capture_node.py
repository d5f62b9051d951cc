"""A node for tests of capture: every real part that a backup goes through, most of them in this process.

vCenter is a lab in a process of its own, nbdd too; tunnel, agent, exports, repository and backup are the real services,
each on its Unix socket. Only the registry of agents is a fake: it says who may connect.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.tunnel_peers import AgentRegistryFake
from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_access.keys import SigningKey, write_workload_identities
from sendense_agent.config import AgentSettings
from sendense_agent.main import open_agent
from sendense_agent.own_key import load_or_create_key
from sendense_backup.config import BackupSettings
from sendense_db.migrate import upgrade
from sendense_exports.config import ExportsSettings
from sendense_exports.layout import ensure_layout
from sendense_exports.main import build as open_exports
from sendense_lab.client import LabClient
from sendense_repository.config import RepositorySettings
from sendense_repository.main import build as open_repository
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.server import Service
from sendense_rpc.settings import ServiceSettings
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.main import open_tunnel
from support import serving

DEADLINE = 120.0
FINAL = ("completed", "failed", "cancelled")


class CaptureNode:
    """The node, as a user sees it, and its lab."""

    def __init__(self, home: Path, lab: LabClient, peer: Peer, registry: AgentRegistryFake) -> None:
        self.home = home
        self.registry = registry
        self.lab = lab
        self._peer = peer
        self._stub = backup_pb2_grpc.BackupServiceStub(peer.channel)

    async def start(self, vm: str, backup_type: str = "incremental", **more: Any) -> backup_pb2.Backup:
        """Starts a backup."""
        request = backup_pb2.StartBackupRequest(vm_name=vm, backup_type=backup_type, **more)
        return await self._peer.call(self._stub.StartBackup, request)

    async def get(self, backup_id: str) -> backup_pb2.Backup:
        """Returns a backup."""
        return await self._peer.call(self._stub.GetBackup, backup_pb2.GetBackupRequest(backup_id=backup_id))

    async def ended(self, backup_id: str) -> backup_pb2.Backup:
        """Waits until a backup has ended."""
        async with asyncio.timeout(DEADLINE):
            while True:
                backup = await self.get(backup_id)
                if backup.status in FINAL:
                    return backup
                await asyncio.sleep(0.05)

    async def back_up(self, vm: str, backup_type: str = "incremental", **more: Any) -> backup_pb2.Backup:
        """Runs a backup that must succeed."""
        backup = await self.ended((await self.start(vm, backup_type, **more)).backup_id)
        assert backup.status == "completed", [(e.level, e.step, e.message) for e in await self.log(backup.backup_id)]
        return backup

    async def log(self, backup_id: str) -> list[backup_pb2.LogEntry]:
        """Returns a backup's log."""
        request = backup_pb2.ListLogEntriesRequest(backup_id=backup_id, page_size=1000)
        return list((await self._peer.call(self._stub.ListLogEntries, request)).entries)

    def assert_equal(self, lab: LabClient, vm: str, backup: backup_pb2.Backup) -> None:
        """Fails unless each disk of a backup is, through its chain, the snapshot that the lab has kept."""
        named = [each for each in lab.snapshots(vm) if backup.backup_id in each["name"]]
        snapshot = named[-1]  # turning change tracking on makes one of the same name first
        for disk in backup.disks:
            if disk.status != "completed":
                continue
            (uuid,) = [each["uuid"] for each in lab.vm(vm)["disks"] if each["label"] == disk.label]
            raw = self.home / f"{uuid}.raw"
            lab.export(vm, uuid, raw, snapshot=snapshot["moref"])
            command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", disk.path, str(raw)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            raw.unlink()
            assert done.returncode == 0, f"{disk.label} ({disk.reason}): {done.stdout}{done.stderr}"


@contextmanager
def state_directory() -> Iterator[Path]:
    """What the fixture `sendense_home` is, for tests that share a node."""
    path = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SENDENSE_HOME", str(path))
            write_workload_identities(SigningKey.load_or_create(path / "keys"), path / "keys")
            yield path
    finally:
        shutil.rmtree(path)


def write_vcenters(path: Path, *accounts: dict[str, Any]) -> None:
    """Writes the agent's vCenters' file, private."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(list(accounts), file)


@asynccontextmanager
async def _process(module: str, home: Path, socket: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    """Runs a module as a process and waits for its socket; its output is in the state directory."""
    with (home / f"{module}.log").open("w") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(DEADLINE):
            while not socket.exists():  # noqa: ASYNC240  # another process makes it
                assert process.returncode is None, (home / f"{module}.log").read_text()
                await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def capture_node(
    home: Path, lab: LabClient, *accounts: dict[str, Any], **environment: str
) -> AsyncIterator[CaptureNode]:
    """Runs the node in a state directory with keys to which `SENDENSE_HOME` points.

    Args:
        home: The state directory.
        lab: The vCenter.
        accounts: What is in vcenters.json; the lab's own credentials by default.
        environment: Of the backup service's process.
    """
    agent_settings, tunnel_settings, exports_settings = AgentSettings(), TunnelSettings(), ExportsSettings()
    repository_settings = RepositorySettings()
    backup_settings = BackupSettings()
    await asyncio.to_thread(upgrade, backup_settings.catalogue_url)
    registry = AgentRegistryFake()
    key = load_or_create_key(agent_settings.key_file, "test")
    registry.enroll(agent_settings.id, key.export_public_key().decode())
    write_vcenters(agent_settings.vcenters_file, *(accounts or (lab.credentials(),)))
    async with AsyncExitStack() as stack:

        async def serve(service: Service, settings: ServiceSettings) -> None:
            await stack.enter_async_context(serving(service, settings))

        await serve(registry.service(), tunnel_settings)
        ensure_layout(exports_settings)
        await stack.enter_async_context(_process("sendense_exports.nbdd", home, exports_settings.nbd_socket, {}))
        await serve(await stack.enter_async_context(open_exports(exports_settings)), exports_settings)
        await serve(await stack.enter_async_context(open_repository(repository_settings)), repository_settings)
        await serve(await stack.enter_async_context(open_tunnel(tunnel_settings)), tunnel_settings)
        await serve(await stack.enter_async_context(open_agent(agent_settings)), agent_settings)
        await stack.enter_async_context(
            _process("sendense_backup.main", home, backup_settings.socket("backup"), environment)
        )
        peer = unix_peer(backup_settings.socket("backup"), backup_settings.identity_file("backup"))
        stack.push_async_callback(peer.close)
        await _door(home, agent_settings.id)
        yield CaptureNode(home, lab, peer, registry)


@asynccontextmanager
async def second_agent(node: CaptureNode, *labs: LabClient) -> AsyncIterator[None]:
    """Runs a further agent, `second`, with a state directory of its own, that knows other vCenters."""
    home = node.home / "second"
    shutil.copytree(node.home / "keys", home / "keys")
    settings = AgentSettings(
        SENDENSE_HOME=home,
        id="second",
        tunnel=f"127.0.0.1:{(node.home / 'run' / 'tunnel.port').read_text().strip()}",
        tunnel_host_key=TunnelSettings().host_key_file.with_suffix(".pub"),
    )  # type: ignore[call-arg]
    key = load_or_create_key(settings.key_file, "test")
    node.registry.enroll(settings.id, key.export_public_key().decode())
    write_vcenters(settings.vcenters_file, *(lab.credentials() for lab in labs))
    async with open_agent(settings) as agent, serving(agent, settings):
        await _door(node.home, settings.id)
        yield


async def _door(home: Path, agent_id: str) -> None:
    door = home / "run" / "agents" / f"{agent_id}.sock"
    async with asyncio.timeout(DEADLINE):
        while not door.exists():  # noqa: ASYNC110  # the tunnel tells nobody when it has opened a door
            await asyncio.sleep(0.02)
