"""A real lab vCenter, a real tunnel with an NBD server behind it, and an agent, asked over gRPC through the tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.nbd_server import storage_daemon
from fakes.tunnel_peers import AgentRegistryFake, ExportCatalogueFake
from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense_agent.config import AgentSettings
from sendense_agent.main import open_agent
from sendense_agent.own_key import load_or_create_key
from sendense_blockio.extents import Extent
from sendense_lab.client import LabClient
from sendense_rpc.channel import Peer, unix_peer
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.main import open_tunnel
from support import serving

MIB = 1 << 20
ALIGNMENT = 64 << 10
INSTALLATION = "installation-1"


def write_vcenters(path: Path, *accounts: dict[str, Any]) -> None:
    """Writes the agent's vCenters' file, private."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(list(accounts), file)


def same_content(qcow2: Path, raw: Path, *, in_use: bool = False) -> None:
    """Fails unless a qcow2 image (with its chain) equals a raw one byte for byte; a flushed one may be in use."""
    command = [
        "qemu-img",
        "compare",
        *(["-U"] if in_use else []),
        "-f",
        "qcow2",
        "-F",
        "raw",
        str(qcow2),
        str(raw),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def children_running(program: str, marker: str) -> list[int]:
    """Returns pids of processes whose command line names a program and holds a marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(program.encode()) and any(marker.encode() in word for word in words):
                found.append(int(entry.name))
    return found


def assert_secret_in_no_process(secret: str, pid: int) -> None:
    """Fails when any process's command line, or the environment of one, holds a secret."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                assert secret.encode() not in (entry / "cmdline").read_bytes(), entry
    assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


@dataclass
class Copied:
    """What a capture reported.

    Attributes:
        sequences: Of its batches.
        entries: Their encoded entries.
        done: Its last message.
        progress: How many progress messages came.
    """

    sequences: list[int] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    done: agent_pb2.CaptureDone | None = None
    progress: int = 0


class AgentRig:
    """The agent's gRPC as the backup service sees it, through the tunnel."""

    def __init__(self, lab: LabClient, home: Path, exports: ExportCatalogueFake) -> None:
        self.lab = lab
        self.home = home
        self.exports = exports
        self.settings = AgentSettings()
        self.door = self.settings.run_dir / "agents" / f"{self.settings.id}.sock"
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer:
        if self._peer is None:
            self._peer = unix_peer(self.door, self.settings.identity_file("backup"))
        return self._peer

    @property
    def stub(self) -> agent_pb2_grpc.AgentServiceStub:
        return agent_pb2_grpc.AgentServiceStub(self.peer.channel)

    async def close(self) -> None:
        if self._peer is not None:
            await self._peer.close()

    def holder(self, job: str = "backup-web-1", attempt: int = 1) -> agent_pb2.Holder:
        return agent_pb2.Holder(job_id=job, attempt=attempt, installation_id=INSTALLATION)

    async def list_vms(self, name: str = "") -> list[agent_pb2.Vm]:
        return list((await self.peer.call(self.stub.ListVms, agent_pb2.ListVmsRequest(name=name))).vms)

    async def ref(self, name: str) -> agent_pb2.VmRef:
        (vm,) = await self.list_vms(name)
        return agent_pb2.VmRef(vcenter_uuid=vm.vcenter_uuid, vm_uuid=vm.vm_uuid)

    async def inspect(self, vm: agent_pb2.VmRef) -> agent_pb2.Vm:
        return await self.peer.call(self.stub.InspectVm, agent_pb2.InspectVmRequest(vm=vm))

    async def enable_tracking(self, vm: agent_pb2.VmRef, holder: agent_pb2.Holder | None = None) -> agent_pb2.Vm:
        request = agent_pb2.EnableChangeTrackingRequest(vm=vm, holder=holder or self.holder())
        return await self.peer.call(self.stub.EnableChangeTracking, request)

    async def create_snapshot(
        self, vm: agent_pb2.VmRef, holder: agent_pb2.Holder | None = None, *, quiesce: bool = False
    ) -> agent_pb2.Snapshot:
        request = agent_pb2.CreateSnapshotRequest(vm=vm, holder=holder or self.holder(), quiesce=quiesce)
        return await self.peer.call(self.stub.CreateSnapshot, request)

    async def remove_snapshot(
        self, vm: agent_pb2.VmRef, holder: agent_pb2.Holder | None = None, moref: str = ""
    ) -> list[str]:
        request = agent_pb2.RemoveSnapshotRequest(vm=vm, holder=holder or self.holder(), moref=moref)
        return list((await self.peer.call(self.stub.RemoveSnapshot, request)).removed_morefs)

    async def plan(
        self, vm: agent_pb2.VmRef, moref: str, device_key: int, parent: str = ""
    ) -> tuple[list[Extent], int, int]:
        """Returns areas, changed bytes and the number of pages."""
        request = agent_pb2.PlanCaptureRequest(
            vm=vm, snapshot_moref=moref, device_key=device_key, parent_change_id=parent, alignment_bytes=ALIGNMENT
        )
        areas: list[Extent] = []
        changed, pages = 0, 0
        async for page in self.peer.stream(self.stub.PlanCapture, request):
            areas += [Extent(area.offset, area.length) for area in page.areas]
            changed, pages = page.changed_bytes, pages + 1
        return areas, changed, pages

    def target(
        self, vm: agent_pb2.VmRef, moref: str, device_key: int, export: str, *, fresh: bool = True, **fields: Any
    ) -> agent_pb2.CaptureTarget:
        return agent_pb2.CaptureTarget(
            vm=vm,
            holder=fields.get("holder") or self.holder(),
            snapshot_moref=moref,
            device_key=device_key,
            export_name=export,
            fresh_target=fresh,
            first_sequence=fields.get("first_sequence", 1),
        )

    async def events(
        self, target: agent_pb2.CaptureTarget, areas: Iterable[Extent]
    ) -> AsyncIterator[agent_pb2.CaptureEvent]:
        async def requests() -> AsyncIterator[agent_pb2.CaptureRequest]:
            yield agent_pb2.CaptureRequest(target=target)
            listed = list(areas)
            for start in range(0, len(listed), 1000):
                page = [agent_pb2.PlannedArea(offset=a.offset, length=a.length) for a in listed[start : start + 1000]]
                yield agent_pb2.CaptureRequest(areas=page)

        async with aclosing(self.peer.stream(self.stub.Capture, requests())) as stream:  # type: ignore[type-var]
            async for event in stream:
                yield event

    async def capture(self, target: agent_pb2.CaptureTarget, areas: Iterable[Extent]) -> Copied:
        copied = Copied()
        async for event in self.events(target, areas):
            if event.HasField("batch"):
                copied.sequences.append(event.batch.sequence)
                copied.entries.append(event.batch.entries)
            elif event.HasField("done"):
                copied.done = event.done
            else:
                copied.progress += 1
        return copied


@asynccontextmanager
async def node_with_agent(
    lab: LabClient, home: Path, exports: dict[str, tuple[Path, str]], *account: dict[str, Any]
) -> AsyncIterator[AgentRig]:
    """Runs fakes, NBD server, tunnel and agent, and waits until the agent can be reached.

    Args:
        lab: The vCenter.
        home: State directory with keys; `SENDENSE_HOME` points to it.
        exports: For each export its image and the agent to which it is leased.
        account: What is in vcenters.json; the lab's own credentials by default.
    """
    tunnel_settings, agent_settings = TunnelSettings(), AgentSettings()
    registry, catalogue = AgentRegistryFake(), ExportCatalogueFake()
    catalogue.leases = {name: agent for name, (_, agent) in exports.items()}
    key = load_or_create_key(agent_settings.key_file, "test")
    registry.enroll(agent_settings.id, key.export_public_key().decode())
    write_vcenters(agent_settings.vcenters_file, *(account or (lab.credentials(),)))
    rig = AgentRig(lab, home, catalogue)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(registry.service(), tunnel_settings))
        await stack.enter_async_context(serving(catalogue.service(), tunnel_settings))
        images = {name: image for name, (image, _) in exports.items()}
        await stack.enter_async_context(storage_daemon(tunnel_settings.nbd_socket, images))
        tunnel = await stack.enter_async_context(open_tunnel(tunnel_settings))
        await stack.enter_async_context(serving(tunnel, tunnel_settings))
        agent = await stack.enter_async_context(open_agent(agent_settings))
        await stack.enter_async_context(serving(agent, agent_settings))
        stack.push_async_callback(rig.close)
        async with asyncio.timeout(15):
            while not rig.door.exists():  # noqa: ASYNC110  # the tunnel tells nobody when it has opened a door
                await asyncio.sleep(0.02)
        yield rig


def overlay(path: Path, parent: Path) -> Path:
    """Makes an increment: an empty qcow2 on top of another."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(parent), "-F", "qcow2", str(path)]
    subprocess.run(command, check=True)
    return path
