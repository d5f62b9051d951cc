"""Agents: who is connected (the tunnel says), and what an agent can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_backup.clients.streams import exchange
from sendense_backup.errors import NoAgent
from sendense_backup.model import Disk, Holder, KnownVm, RevertLook, Snapshot, SnapshotFacts, Vm, VmRef, VmSnapshot
from sendense_rpc.channel import Peer
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

INVENTORY_SECONDS = 60.0
CHANGE_TRACKING_SECONDS = 600.0
SNAPSHOT_SECONDS = 900.0
"""A quiesced snapshot of a busy VM takes minutes."""
REMOVAL_SECONDS = 3600.0
"""Removing a snapshot waits for the consolidation of what the VM wrote meanwhile."""

PAGE_BLOCKS = 10_000
"""Blocks of one message."""

Pages = AsyncIterator[list[tuple[int, int]]]
"""Pages of (offset, length), sorted over all pages."""


@dataclass(frozen=True, slots=True)
class PlanEnd:
    """The end of a plan: bytes that vCenter named as changed or allocated."""

    changed_bytes: int


@dataclass(frozen=True, slots=True)
class CaptureOrder:
    """What a capture copies, and where to."""

    ref: VmRef
    snapshot_moref: str
    device_key: int
    export_name: str
    fresh_target: bool
    first_sequence: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a capture is, in bytes of this capture."""

    done_bytes: int
    total_bytes: int
    zero_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A flushed batch, to be committed to the journal."""

    sequence: int
    entries: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """The copy is complete."""

    progress: Progress
    reader: str


class AgentClient:
    """One agent's gRPC, through the tunnel.

    Args:
        agent_id: The enrolled agent.
        peer: Its socket.
        installation_id: Written into snapshots: only this installation's are ever removed.
    """

    def __init__(self, agent_id: str, peer: Peer, installation_id: str) -> None:
        self.agent_id = agent_id
        self.installation_id = installation_id
        self._peer = peer
        self._stub = agent_pb2_grpc.AgentServiceStub(peer.channel)

    async def list_vms(self, name: str) -> list[Vm]:
        """Returns the VMs of exactly this name; all when it is empty."""
        request = agent_pb2.ListVmsRequest(name=name)
        answer = await self._peer.call(self._stub.ListVms, request, timeout=INVENTORY_SECONDS)
        return [_vm(each) for each in answer.vms]

    async def inspect(self, ref: VmRef) -> Vm:
        """Returns a VM with its disks."""
        request = agent_pb2.InspectVmRequest(vm=_ref(ref))
        return _vm(await self._peer.call(self._stub.InspectVm, request, timeout=INVENTORY_SECONDS))

    async def enable_change_tracking(self, ref: VmRef, holder: Holder) -> Vm:
        """Turns change tracking on and makes it effective."""
        request = agent_pb2.EnableChangeTrackingRequest(vm=_ref(ref), holder=self._holder(holder))
        answer = await self._peer.call(self._stub.EnableChangeTracking, request, timeout=CHANGE_TRACKING_SECONDS)
        return _vm(answer)

    async def create_snapshot(self, ref: VmRef, holder: Holder, *, quiesce: bool) -> Snapshot:
        """Makes the job's one snapshot, or joins the one that it has."""
        request = agent_pb2.CreateSnapshotRequest(vm=_ref(ref), holder=self._holder(holder), quiesce=quiesce)
        made = await self._peer.call(self._stub.CreateSnapshot, request, timeout=SNAPSHOT_SECONDS)
        moment = made.created_at.ToDatetime(UTC) if made.HasField("created_at") else datetime.now(UTC)
        return Snapshot(
            moref=made.moref,
            name=made.name,
            created_at=moment,
            quiesced=made.quiesced,
            disks=tuple(_disk(each) for each in made.disks),
            quiesce_problem=made.quiesce_problem,
            facts=SnapshotFacts(made.alone, made.event_mark, ref.vcenter_uuid),
        )

    async def look_for_revert(self, ref: VmRef, since: str, own: str) -> RevertLook:
        """Tells whether the VM was reverted between two marks of the event log (`SnapshotFacts.event_mark`)."""
        request = agent_pb2.LookForRevertRequest(vm=_ref(ref), since_event_mark=since, own_event_mark=own)
        answer = await self._peer.call(self._stub.LookForRevert, request, timeout=INVENTORY_SECONDS)
        return RevertLook(answer.finding, answer.detail)

    async def remove_snapshot(self, ref: VmRef, holder: Holder, moref: str) -> list[str]:
        """Removes the job's snapshot; with no moref, every snapshot of the job. Returns the morefs that went."""
        request = agent_pb2.RemoveSnapshotRequest(vm=_ref(ref), holder=self._holder(holder), moref=moref)
        answer = await self._peer.call(self._stub.RemoveSnapshot, request, timeout=REMOVAL_SECONDS)
        return list(answer.removed_morefs)

    async def plan(
        self, ref: VmRef, moref: str, device_key: int, parent_change_id: str, alignment: int
    ) -> AsyncIterator[list[tuple[int, int]] | PlanEnd]:
        """Yields what must be copied of a snapshot disk, in pages, and the end of the plan last."""
        request = agent_pb2.PlanCaptureRequest(
            vm=_ref(ref),
            snapshot_moref=moref,
            device_key=device_key,
            parent_change_id=parent_change_id,
            alignment_bytes=alignment,
        )
        changed = 0
        async with aclosing(self._peer.stream(self._stub.PlanCapture, request)) as pages:  # type: ignore[type-var]
            async for page in pages:
                changed = page.changed_bytes or changed
                if page.areas:
                    yield [(area.offset, area.length) for area in page.areas]
        yield PlanEnd(changed)

    async def capture(
        self, order: CaptureOrder, holder: Holder, areas: Pages
    ) -> AsyncIterator[Progress | Batch | Done]:
        """Copies areas into an export and yields what happens; `Done` is the last of a copy that succeeded."""
        target = agent_pb2.CaptureTarget(
            vm=_ref(order.ref),
            holder=self._holder(holder),
            snapshot_moref=order.snapshot_moref,
            device_key=order.device_key,
            export_name=order.export_name,
            fresh_target=order.fresh_target,
            first_sequence=order.first_sequence,
        )

        async def requests() -> AsyncIterator[agent_pb2.CaptureRequest]:
            yield agent_pb2.CaptureRequest(target=target)
            async for page in areas:
                yield agent_pb2.CaptureRequest(
                    areas=[agent_pb2.PlannedArea(offset=offset, length=length) for offset, length in page]
                )

        async with aclosing(exchange(self._peer, self._stub.Capture, requests())) as events:  # type: ignore[type-var]
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "progress":
                    yield _progress(event.progress)
                elif kind == "batch":
                    yield Batch(event.batch.sequence, event.batch.entries)
                elif kind == "done":
                    yield Done(_progress(event.done.progress), event.done.reader)

    async def digests(
        self, ref: VmRef, holder: Holder, moref: str, device_key: int, blocks: Sequence[tuple[int, int]]
    ) -> AsyncIterator[list[bytes]]:
        """Yields the BLAKE3 digests of blocks of a snapshot disk, in their order, in pages."""
        source = agent_pb2.DigestSource(
            vm=_ref(ref), holder=self._holder(holder), snapshot_moref=moref, device_key=device_key
        )

        async def requests() -> AsyncIterator[agent_pb2.DigestBlocksRequest]:
            yield agent_pb2.DigestBlocksRequest(source=source)
            for start in range(0, len(blocks), PAGE_BLOCKS):
                page = blocks[start : start + PAGE_BLOCKS]
                yield agent_pb2.DigestBlocksRequest(
                    blocks=[agent_pb2.PlannedArea(offset=offset, length=length) for offset, length in page]
                )

        async with aclosing(exchange(self._peer, self._stub.DigestBlocks, requests())) as pages:  # type: ignore[type-var]
            async for page in pages:
                yield list(page.digests)

    def _holder(self, holder: Holder) -> agent_pb2.Holder:
        return agent_pb2.Holder(job_id=holder.job_id, attempt=holder.attempt, installation_id=self.installation_id)


class Agents:
    """The agents that are connected now.

    Args:
        tunnel: The tunnel's gRPC.
        reach: Returns an agent as a peer, from its id and its socket on the tunnel's machine.
        installation_id: This installation.
    """

    def __init__(self, tunnel: Peer, reach: Callable[[str, Path], Peer], installation_id: str) -> None:
        self._tunnel = tunnel
        self._stub = tunnel_pb2_grpc.TunnelServiceStub(tunnel.channel)
        self._reach = reach
        self._installation_id = installation_id
        self._peers: dict[str, Peer] = {}

    async def connected(self) -> list[AgentClient]:
        """Returns the connected agents."""
        answer = await self._tunnel.call(self._stub.ListConnections, tunnel_pb2.ListConnectionsRequest())
        return [self._client(each.agent_id, each.socket_path) for each in answer.connections]

    async def agent(self, agent_id: str) -> AgentClient:
        """Returns an agent.

        Raises:
            NoAgent: It is not connected now.
        """
        for client in await self.connected():
            if client.agent_id == agent_id:
                return client
        raise NoAgent(agent_id)

    async def find_vms(self, name: str = "") -> list[KnownVm]:
        """Returns the VMs (of exactly this name) that the connected agents know, by name.

        An agent that fails is left out, and named in the log, as long as another one answers.

        Raises:
            NoAgent: No agent is connected.
            RemoteError: All that are connected failed.
        """
        clients = await self.connected()
        if not clients:
            raise NoAgent
        answers = await asyncio.gather(*(client.list_vms(name) for client in clients), return_exceptions=True)
        found: list[KnownVm] = []
        failures: list[SendenseError] = []
        for client, answer in zip(clients, answers, strict=True):
            if isinstance(answer, SendenseError):
                log.warning("agent does not list its VMs", agent=client.agent_id, error=str(answer))
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.extend(KnownVm(client.agent_id, vm) for vm in answer)
        if failures and not found:
            raise failures[0]
        unique = {each.vm.ref: each for each in found}  # two agents of one vCenter know the same VMs
        return sorted(unique.values(), key=lambda each: (each.vm.name, each.vm.inventory_path))

    async def close(self) -> None:
        """Closes all connections."""
        for peer in self._peers.values():
            await peer.close()

    def _client(self, agent_id: str, socket: str) -> AgentClient:
        if socket not in self._peers:
            self._peers[socket] = self._reach(agent_id, Path(socket))
        return AgentClient(agent_id, self._peers[socket], self._installation_id)


def _ref(ref: VmRef) -> agent_pb2.VmRef:
    return agent_pb2.VmRef(vcenter_uuid=ref.vcenter_uuid, vm_uuid=ref.vm_uuid)


def _disk(disk: agent_pb2.Disk) -> Disk:
    return Disk(
        device_key=disk.device_key,
        identity=disk.identity,
        label=disk.label,
        capacity_bytes=disk.capacity_bytes,
        change_id=disk.change_id,
        skip_reason=disk.skip_reason,
        file_name=disk.file_name,
    )


def _vm(vm: agent_pb2.Vm) -> Vm:
    return Vm(
        ref=VmRef(vm.vcenter_uuid, vm.vm_uuid),
        name=vm.name,
        inventory_path=vm.inventory_path,
        power_state=vm.power_state,
        template=vm.template,
        change_tracking_supported=vm.change_tracking_supported,
        change_tracking_enabled=vm.change_tracking_enabled,
        consolidation_needed=vm.consolidation_needed,
        snapshot_count=vm.snapshot_count,
        datastore_free_bytes=vm.datastore_free_bytes,
        hardware_json=vm.hardware_json,
        disks=tuple(_disk(each) for each in vm.disks),
        snapshots=tuple(
            VmSnapshot(each.moref, each.name, each.created_at.ToDatetime(UTC), each.job_id, each.installation_id)
            for each in vm.snapshots
        ),
        tags=tuple(vm.tags),
    )


def _progress(progress: agent_pb2.CaptureProgress) -> Progress:
    return Progress(progress.done_bytes, progress.total_bytes, progress.zero_bytes)
