"""Hand-written fakes of the ports that the backup service calls: a small world that is strict about order and fencing.

Disks are small byte strings. A snapshot freezes them, a capture copies real bytes into a layer through an export, and
whatever a right implementation would refuse is refused here: an older attempt, an export name used twice, a capture
without export, a seal under an open export or with a gap in the journal, a commit of an unsealed layer.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense.repository.v1 import (
    layer_pb2,
    layer_pb2_grpc,
    point_pb2,
    point_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)
from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_blockio.extents import Extent, normalize, subtract, total
from sendense_blockio.journal import Entry, decode_entries, encode_entries, entry_extents
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.server import Service, Servicer
from sendense_rpc.settings import ServiceSettings
from support import serving

CLUSTER = 4096
CAPACITY = 16 * CLUSTER
ROOM = 1 << 40
AGENT = "agent-1"
INSTALLATION_SNAPSHOT_PREFIX = "sendense-"


def refuse(reason: str, message: str = "", *, kind: Kind = Kind.FAILED_PRECONDITION, retryable: bool = False) -> Any:
    raise SendenseError(message or reason.lower(), kind=kind, reason=reason, retryable=retryable)


@dataclass
class FakeDisk:
    key: int
    label: str
    content: bytearray
    epoch: str = field(default_factory=lambda: str(uuid.uuid4()))
    identity: str = field(default_factory=lambda: str(uuid.uuid4()))
    skip_reason: str = ""
    history: list[tuple[int, int]] = field(default_factory=list)
    """(sequence at the time, cluster) of each write."""


@dataclass
class FakeSnapshot:
    moref: str
    job: str
    installation: str
    disks: dict[int, bytes]
    change_ids: dict[int, str]


@dataclass
class FakeVm:
    name: str
    path: str
    disks: list[FakeDisk]
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    vcenter: str = "11111111-1111-1111-1111-111111111111"
    tracking: bool = False
    tracking_supported: bool = True
    template: bool = False
    free_bytes: int = 1 << 40
    plan_faults: list[str] = field(default_factory=list)
    foreign_snapshots: int = 0
    revert_finding: str = "no revert"
    sequence: int = 1
    snapshots: list[FakeSnapshot] = field(default_factory=list)

    def write(self, position: int, cluster: int, fill: bytes) -> None:
        disk = self.disks[position]
        disk.content[cluster * CLUSTER : (cluster + 1) * CLUSTER] = (fill * CLUSTER)[:CLUSTER]
        disk.history.append((self.sequence, cluster))


@dataclass
class FakeLayer:
    layer_id: str
    job: str
    vm_uuid: str
    disk_id: int
    identity: str
    kind: str
    parent: str
    chain: str
    change_id: str
    content: bytearray
    path: str
    state: str = "partial"
    areas: list[Extent] | None = None
    batches: list[bytes] = field(default_factory=list)

    def covered(self) -> list[Extent]:
        return entry_extents(entry for batch in self.batches for entry in decode_entries(batch))


@dataclass
class FakePoint:
    backup_id: str
    vm_uuid: str
    context: str
    vm_name: str
    layers: list[str]


class World:
    """All state, and the faults that a test asks for."""

    def __init__(self) -> None:
        self.vms: list[FakeVm] = []
        self.layers: dict[str, FakeLayer] = {}
        self.points: list[FakePoint] = []
        self.exports: dict[str, exports_pb2.CreateFileExportRequest] = {}
        self.export_names: set[str] = set()
        self.disk_numbers: dict[tuple[str, str], int] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[SendenseError]] = defaultdict(list)
        self.always: dict[str, SendenseError] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.held = asyncio.Event()
        self.agent_connected = True
        self.room = ROOM
        self.enabled = True
        self.batch_pause = 0.0
        self.capturing: dict[str, int] = defaultdict(int)

    async def enter(self, call: str) -> None:
        """Notes a call, and lets it fail or wait when a test asked for that."""
        self.calls.append(call)
        if call in self.holds:
            self.held.set()
            await self.holds[call].wait()
        if self.faults[call]:
            raise self.faults[call].pop(0)
        if call in self.always:
            raise self.always[call]

    def fence(self, service: str, job: str, attempt: int) -> None:
        """Refuses an attempt that is older than the last one seen for the job."""
        if attempt < 1:
            refuse("STALE_ATTEMPT", "attempts begin with 1", kind=Kind.ABORTED)
        if attempt < self.attempts.get((service, job), 0):
            refuse("STALE_ATTEMPT", f"attempt {attempt} of {job} is old", kind=Kind.ABORTED)
        self.attempts[service, job] = attempt

    def vm(self, ref: agent_pb2.VmRef) -> FakeVm:
        for each in self.vms:
            if (each.vcenter, each.uuid) == (ref.vcenter_uuid, ref.vm_uuid):
                return each
        return refuse("VM_NOT_FOUND", kind=Kind.NOT_FOUND)  # type: ignore[no-any-return]

    def add_vm(self, name: str, disks: int = 1, path: str = "") -> FakeVm:
        made = []
        for number in range(disks):
            content = bytearray(CAPACITY)
            for cluster in range(0, 16, 2):
                content[cluster * CLUSTER : (cluster + 1) * CLUSTER] = bytes([65 + number]) * CLUSTER
            made.append(FakeDisk(2000 + number, f"Hard disk {number + 1}", content))
        vm = FakeVm(name, path or f"/DC/vm/{name}", made)
        self.vms.append(vm)
        return vm

    def seed_point(self, vm: FakeVm) -> FakePoint:
        """Gives a VM a full restore point of its content now, as an earlier backup would have left it."""
        vm.tracking = True
        vm.sequence += 1
        layers = []
        for number, disk in enumerate(vm.disks):
            self.disk_numbers[vm.uuid, disk.identity] = number
            name = f"seed-{vm.name}-{number}"
            layers.append(name)
            self.layers[name] = FakeLayer(
                layer_id=name,
                job=f"backup-{vm.name}-20200101000000",
                vm_uuid=vm.uuid,
                disk_id=number,
                identity=disk.identity,
                kind="full",
                parent="",
                chain=f"chain-{name}",
                change_id=f"{disk.epoch}/{vm.sequence}",
                content=bytearray(disk.content),
                path=f"/backups/{vm.uuid}/disk-{number}/{name}.qcow2",
                state="sealed",
            )
        point = FakePoint(f"backup-{vm.name}-20200101000000", vm.uuid, "ctx-seed", vm.name, layers)
        self.points.append(point)
        return point

    @property
    def clean(self) -> bool:
        """Whether nothing is left that a job acquired: no snapshot, export, partial or orphaned layer."""
        kept = {layer for point in self.points for layer in point.layers}
        return not self.exports and not any(vm.snapshots for vm in self.vms) and set(self.layers) == kept

    def left(self) -> str:
        snapshots = [s.moref for vm in self.vms for s in vm.snapshots]
        return f"exports {list(self.exports)}, snapshots {snapshots}, layers {list(self.layers)}"

    def point_contents(self, backup_id: str) -> list[bytes]:
        point = next(each for each in self.points if each.backup_id == backup_id)
        return [bytes(self.layers[layer].content) for layer in point.layers]


class FakeTunnel(tunnel_pb2_grpc.TunnelServiceServicer):
    def __init__(self, world: World, settings: ServiceSettings) -> None:
        self._world, self._settings = world, settings

    async def ListConnections(self, request: Any, context: Any) -> tunnel_pb2.ListConnectionsResponse:
        if not self._world.agent_connected:
            return tunnel_pb2.ListConnectionsResponse()
        socket = str(self._settings.socket(f"agents/{AGENT}"))
        return tunnel_pb2.ListConnectionsResponse(
            connections=[tunnel_pb2.Connection(agent_id=AGENT, socket_path=socket)]
        )


class FakeAgent(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    def _message(self, vm: FakeVm) -> agent_pb2.Vm:
        return agent_pb2.Vm(
            vcenter_uuid=vm.vcenter,
            vm_uuid=vm.uuid,
            moref="vm-1",
            name=vm.name,
            inventory_path=vm.path,
            power_state="poweredOn",
            template=vm.template,
            hardware_version="vmx-19",
            change_tracking_supported=vm.tracking_supported,
            change_tracking_enabled=vm.tracking,
            snapshot_count=len(vm.snapshots) + vm.foreign_snapshots,
            disks=[self._disk(vm, disk, "") for disk in vm.disks],
            datastore_free_bytes=vm.free_bytes,
            hardware_json='{"cpus": 2}',
        )

    def _disk(self, vm: FakeVm, disk: FakeDisk, change_id: str) -> agent_pb2.Disk:
        return agent_pb2.Disk(
            device_key=disk.key,
            identity=disk.identity,
            label=disk.label,
            capacity_bytes=len(disk.content),
            file_name=f"[ds] {vm.name}/{disk.key}.vmdk",
            change_id=change_id,
            skip_reason=disk.skip_reason,
        )

    async def ListVms(self, request: agent_pb2.ListVmsRequest, context: Any) -> agent_pb2.ListVmsResponse:
        await self._world.enter("ListVms")
        found = [vm for vm in self._world.vms if not request.name or vm.name == request.name]
        return agent_pb2.ListVmsResponse(vms=[self._message(vm) for vm in found])

    async def InspectVm(self, request: agent_pb2.InspectVmRequest, context: Any) -> agent_pb2.Vm:
        await self._world.enter("InspectVm")
        return self._message(self._world.vm(request.vm))

    async def EnableChangeTracking(self, request: agent_pb2.EnableChangeTrackingRequest, context: Any) -> agent_pb2.Vm:
        await self._world.enter("EnableChangeTracking")
        self._world.fence("agent", request.holder.job_id, request.holder.attempt)
        vm = self._world.vm(request.vm)
        if vm.snapshots or vm.foreign_snapshots:
            refuse("CBT_NEEDS_NO_SNAPSHOT")
        vm.tracking = True
        return self._message(vm)

    async def CreateSnapshot(self, request: agent_pb2.CreateSnapshotRequest, context: Any) -> agent_pb2.Snapshot:
        await self._world.enter("CreateSnapshot")
        self._world.fence("agent", request.holder.job_id, request.holder.attempt)
        vm = self._world.vm(request.vm)
        job = request.holder.job_id
        mine = next((each for each in vm.snapshots if each.job == job), None)
        if mine is None:
            vm.sequence += 1
            mine = FakeSnapshot(
                moref=f"snapshot-{len(self._world.calls)}",
                job=job,
                installation=request.holder.installation_id,
                disks={disk.key: bytes(disk.content) for disk in vm.disks if not disk.skip_reason},
                change_ids={disk.key: f"{disk.epoch}/{vm.sequence}" if vm.tracking else "" for disk in vm.disks},
            )
            vm.snapshots.append(mine)
        await self._world.enter("CreateSnapshot.answer")
        moment = Timestamp()
        moment.GetCurrentTime()
        return agent_pb2.Snapshot(
            moref=mine.moref,
            name=f"{INSTALLATION_SNAPSHOT_PREFIX}{job}",
            created_at=moment,
            disks=[self._disk(vm, disk, mine.change_ids[disk.key]) for disk in vm.disks if disk.key in mine.disks],
            quiesced=request.quiesce,
            alone=len(vm.snapshots) + vm.foreign_snapshots == 1,
            event_mark="1@2026-01-01T00:00:00+00:00",
        )

    async def LookForRevert(self, request: agent_pb2.LookForRevertRequest, context: Any) -> Any:
        await self._world.enter("LookForRevert")
        return agent_pb2.LookForRevertResponse(finding=self._world.vm(request.vm).revert_finding)

    async def RemoveSnapshot(
        self, request: agent_pb2.RemoveSnapshotRequest, context: Any
    ) -> agent_pb2.RemoveSnapshotResponse:
        await self._world.enter("RemoveSnapshot")
        self._world.fence("agent", request.holder.job_id, request.holder.attempt)
        vm = self._world.vm(request.vm)
        mine = [
            each
            for each in vm.snapshots
            if (each.job, each.installation) == (request.holder.job_id, request.holder.installation_id)
            and request.moref in ("", each.moref)
        ]
        if any(self._world.capturing[each.moref] for each in mine):
            refuse("SNAPSHOT_IN_USE", "a capture reads the snapshot")
        if request.moref and not mine and any(each.moref == request.moref for each in vm.snapshots):
            refuse("SNAPSHOT_NOT_OURS")
        for each in mine:
            vm.snapshots.remove(each)
        return agent_pb2.RemoveSnapshotResponse(removed_morefs=[each.moref for each in mine])

    def _snapshot(self, vm: FakeVm, moref: str) -> FakeSnapshot:
        for each in vm.snapshots:
            if each.moref == moref:
                return each
        return refuse("SNAPSHOT_NOT_FOUND", kind=Kind.NOT_FOUND)  # type: ignore[no-any-return]

    async def PlanCapture(
        self, request: agent_pb2.PlanCaptureRequest, context: Any
    ) -> AsyncIterator[agent_pb2.PlanPage]:
        await self._world.enter("PlanCapture")
        vm = self._world.vm(request.vm)
        snapshot = self._snapshot(vm, request.snapshot_moref)
        disk = next(each for each in vm.disks if each.key == request.device_key)
        assert request.alignment_bytes == CLUSTER
        if vm.plan_faults:
            refuse(vm.plan_faults.pop(0))
        if request.parent_change_id:
            epoch, _, since = request.parent_change_id.partition("/")
            if epoch != disk.epoch:
                refuse("CBT_RESET")
            upto = int(snapshot.change_ids[disk.key].partition("/")[2])
            clusters = sorted({cluster for sequence, cluster in disk.history if int(since) <= sequence < upto})
        else:
            content = snapshot.disks[disk.key]
            clusters = [n for n in range(len(content) // CLUSTER) if any(content[n * CLUSTER : (n + 1) * CLUSTER])]
        areas = normalize(Extent(n * CLUSTER, CLUSTER) for n in clusters)
        for area in areas:  # one area a page: paging must not show
            yield agent_pb2.PlanPage(areas=[agent_pb2.PlannedArea(offset=area.offset, length=area.length)])
            await self._world.enter("PlanCapture.page")
        yield agent_pb2.PlanPage(changed_bytes=total(areas))

    async def Capture(
        self, requests: AsyncIterator[agent_pb2.CaptureRequest], context: Any
    ) -> AsyncIterator[agent_pb2.CaptureEvent]:
        world = self._world
        target, areas = None, []
        async for request in requests:
            if target is None:
                target = request.target
            areas.extend(Extent(area.offset, area.length) for area in request.areas)
        assert target is not None
        await world.enter("Capture")
        world.fence("agent", target.holder.job_id, target.holder.attempt)
        vm = world.vm(target.vm)
        content = self._snapshot(vm, target.snapshot_moref).disks[target.device_key]
        export = world.exports.get(target.export_name) or refuse("CAPTURE_FAILED", "no such export")
        if export.agent_id != AGENT or export.read_only:
            refuse("CAPTURE_FAILED", "the export is not for this agent")
        layer = next(each for each in world.layers.values() if each.path == export.path)
        if target.fresh_target != (layer.kind == "full"):
            refuse("CAPTURE_FAILED", "fresh_target contradicts the layer")
        done, sequence = 0, target.first_sequence
        goal = total(areas)
        world.capturing[target.snapshot_moref] += 1
        try:
            for area in areas:
                for offset in range(area.offset, area.end, CLUSTER):
                    if target.export_name not in world.exports:
                        refuse("CAPTURE_FAILED", "the export is gone", kind=Kind.ABORTED, retryable=True)
                    data = content[offset : offset + CLUSTER]
                    layer.content[offset : offset + CLUSTER] = data
                    digest = blake3(data).digest() if any(data) else None
                    yield agent_pb2.CaptureEvent(
                        batch=agent_pb2.CaptureBatch(
                            sequence=sequence, entries=encode_entries([Entry(offset, len(data), digest)])
                        )
                    )
                    sequence += 1
                    done += len(data)
                    yield agent_pb2.CaptureEvent(progress=agent_pb2.CaptureProgress(done_bytes=done, total_bytes=goal))
                    await asyncio.sleep(world.batch_pause)
                    await world.enter("Capture.batch")
            yield agent_pb2.CaptureEvent(
                done=agent_pb2.CaptureDone(
                    progress=agent_pb2.CaptureProgress(done_bytes=done, total_bytes=goal), reader="fake"
                )
            )
        finally:
            world.capturing[target.snapshot_moref] -= 1


class FakeExports(exports_pb2_grpc.ExportServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def CreateFileExport(self, request: exports_pb2.CreateFileExportRequest, context: Any) -> exports_pb2.Export:
        await self._world.enter("CreateFileExport")
        self._world.fence("exports", request.holder.job_id, request.holder.attempt)
        known = self._world.exports.get(request.export_name)
        if known is None:
            if request.export_name in self._world.export_names:
                refuse("NAME_USED", f"{request.export_name} was used before")
            if any(each.path == request.path for each in self._world.exports.values()):
                refuse("IMAGE_BUSY")
        elif (known.path, known.holder.attempt) != (request.path, request.holder.attempt):
            refuse("EXPORT_EXISTS")
        self._world.export_names.add(request.export_name)
        self._world.exports[request.export_name] = request
        await self._world.enter("CreateFileExport.answer")
        return exports_pb2.Export(export_name=request.export_name, path=request.path, state="serving")

    async def DeleteExport(
        self, request: exports_pb2.DeleteExportRequest, context: Any
    ) -> exports_pb2.DeleteExportResponse:
        await self._world.enter("DeleteExport")
        self._world.fence("exports", request.holder.job_id, request.holder.attempt)
        self._world.exports.pop(request.export_name, None)
        return exports_pb2.DeleteExportResponse()

    async def CreateBlockExport(self, request: Any, context: Any) -> Any:
        raise AssertionError("the backup service makes no block exports")

    async def GetExport(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")

    async def ListExports(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")

    async def ReloadExports(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")


class FakeRepositories(repository_pb2_grpc.RepositoryServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        await self._world.enter("GetRepository")
        if request.repository_id not in ("repo-1", "local"):
            refuse("REPOSITORY_NOT_FOUND", "known repositories: local", kind=Kind.NOT_FOUND)
        return repository_pb2.Repository(
            repository_id="repo-1",
            name="local",
            repository_type="local",
            path="/backups",
            enabled=self._world.enabled,
            available_size_bytes=self._world.room,
        )

    async def ListRepositories(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")

    async def CreateRepository(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")


class FakeLayers(layer_pb2_grpc.LayerServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    def _find(self, layer_id: str) -> FakeLayer:
        return self._world.layers.get(layer_id) or refuse("LAYER_NOT_FOUND", kind=Kind.NOT_FOUND)

    async def CreateLayer(self, request: layer_pb2.CreateLayerRequest, context: Any) -> layer_pb2.Layer:
        world = self._world
        await world.enter("CreateLayer")
        world.fence("repository", request.holder.job_id, request.holder.attempt)
        job, identity = request.holder.job_id, request.disk_identity
        mine = next((each for each in world.layers.values() if (each.job, each.identity) == (job, identity)), None)
        if mine is not None:
            return layer_message(mine)
        content = bytearray(request.virtual_size_bytes)
        chain = f"chain-{len(world.calls)}"
        if request.parent_layer_id:
            parent = self._find(request.parent_layer_id)
            latest = [point for point in world.points if point.vm_uuid == request.vm_uuid][-1]
            if parent.layer_id not in latest.layers or parent.state != "sealed":
                refuse("STALE_PARENT")
            content, chain = bytearray(parent.content), parent.chain
        number = world.disk_numbers.setdefault(
            (request.vm_uuid, identity), sum(1 for vm, _ in world.disk_numbers if vm == request.vm_uuid)
        )
        name = f"layer-{len(world.calls)}"
        layer = FakeLayer(
            layer_id=name,
            job=job,
            vm_uuid=request.vm_uuid,
            disk_id=number,
            identity=identity,
            kind="incremental" if request.parent_layer_id else "full",
            parent=request.parent_layer_id,
            chain=chain,
            change_id=request.change_id,
            content=content,
            path=f"/backups/{request.vm_uuid}/disk-{number}/{name}.qcow2.partial",
        )
        world.layers[name] = layer
        await world.enter("CreateLayer.answer")
        return layer_message(layer)

    async def SetAreas(self, requests: AsyncIterator[layer_pb2.SetAreasRequest], context: Any) -> layer_pb2.Areas:
        await self._world.enter("SetAreas")
        layer: FakeLayer | None = None
        areas: list[Extent] = []
        complete = False
        async for request in requests:
            complete = request.last
            if layer is None:
                self._world.fence("repository", request.holder.job_id, request.holder.attempt)
                layer = self._find(request.layer_id)
            areas.extend(Extent(area.offset, area.length) for area in request.areas)
        assert layer is not None
        if not complete:
            refuse("INVALID_FIELD", "the stream ended before its last message")
        areas = normalize(areas)
        if layer.areas not in (None, areas):
            refuse("AREAS_FIXED")
        layer.areas = areas
        return layer_pb2.Areas(count=len(areas), total_bytes=total(areas), digest="d")

    async def ListRemainingAreas(
        self, request: layer_pb2.ListRemainingAreasRequest, context: Any
    ) -> AsyncIterator[layer_pb2.AreaPage]:
        await self._world.enter("ListRemainingAreas")
        layer = self._find(request.layer_id)
        if layer.areas is None:
            refuse("AREAS_NOT_SET")
        for area in subtract(layer.areas, layer.covered()):
            yield layer_pb2.AreaPage(areas=[layer_pb2.Area(offset=area.offset, length=area.length)])

    async def AppendJournal(self, request: layer_pb2.AppendJournalRequest, context: Any) -> layer_pb2.JournalState:
        await self._world.enter("AppendJournal")
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        layer = self._find(request.layer_id)
        if layer.state == "sealed":
            refuse("LAYER_SEALED")
        if request.sequence <= len(layer.batches):
            if layer.batches[request.sequence - 1] != request.entries:
                refuse("JOURNAL_SEQUENCE", f"batch {request.sequence} was another one")
        elif request.sequence == len(layer.batches) + 1:
            layer.batches.append(request.entries)
        else:
            refuse("JOURNAL_SEQUENCE", f"{request.sequence} comes after {len(layer.batches)}")
        await self._world.enter("AppendJournal.answer")
        return layer_pb2.JournalState(last_sequence=len(layer.batches), journaled_bytes=total(layer.covered()))

    async def SealLayer(self, request: layer_pb2.SealLayerRequest, context: Any) -> layer_pb2.Layer:
        await self._world.enter("SealLayer")
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        layer = self._find(request.layer_id)
        if layer.state == "sealed":
            return layer_message(layer)
        if any(each.path == layer.path for each in self._world.exports.values()):
            refuse("LAYER_BUSY", "the layer is still exported")
        if layer.areas is None or layer.covered() != layer.areas:
            refuse("JOURNAL_INCOMPLETE")
        if not request.reason:
            refuse("INVALID_FIELD", "no reason")
        layer.state, layer.path = "sealed", layer.path.removesuffix(".partial")
        await self._world.enter("SealLayer.answer")
        return layer_message(layer)

    async def DiscardLayer(
        self, request: layer_pb2.DiscardLayerRequest, context: Any
    ) -> layer_pb2.DiscardLayerResponse:
        await self._world.enter("DiscardLayer")
        self._world.fence("repository", request.holder.job_id, request.holder.attempt)
        if any(request.layer_id in point.layers for point in self._world.points):
            refuse("LAYER_IN_USE")
        layer = self._world.layers.get(request.layer_id)
        if layer and any(each.path == layer.path for each in self._world.exports.values()):
            refuse("LAYER_BUSY", "the layer is still exported")
        self._world.layers.pop(request.layer_id, None)
        return layer_pb2.DiscardLayerResponse()


class FakePoints(point_pb2_grpc.PointServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    def _message(self, point: FakePoint) -> point_pb2.Point:
        return point_pb2.Point(
            backup_id=point.backup_id,
            repository_id="repo-1",
            vm_uuid=point.vm_uuid,
            layers=[layer_message(self._world.layers[each]) for each in point.layers],
        )

    async def CommitPoint(self, request: point_pb2.CommitPointRequest, context: Any) -> point_pb2.Point:
        world = self._world
        await world.enter("CommitPoint")
        world.fence("repository", request.holder.job_id, request.holder.attempt)
        known = next((each for each in world.points if each.backup_id == request.holder.job_id), None)
        if known is None:
            if any(world.layers[each].state != "sealed" for each in request.layer_ids):
                refuse("LAYER_NOT_SEALED")
            if not any(each.job == request.holder.job_id for vm in world.vms for each in vm.snapshots):
                refuse("SNAPSHOT_GONE", "the snapshot went before the commit")
            known = FakePoint(
                request.holder.job_id, request.vm_uuid, request.vm_context_id, request.vm_name, list(request.layer_ids)
            )
            world.points.append(known)
        await world.enter("CommitPoint.answer")
        return self._message(known)

    async def GetPoint(self, request: point_pb2.GetPointRequest, context: Any) -> point_pb2.Point:
        await self._world.enter("GetPoint")
        for each in self._world.points:
            if each.backup_id == request.backup_id:
                return self._message(each)
        return refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)  # type: ignore[no-any-return]

    async def GetLatestPoint(self, request: point_pb2.GetLatestPointRequest, context: Any) -> point_pb2.Point:
        await self._world.enter("GetLatestPoint")
        found = [each for each in self._world.points if each.vm_uuid == request.vm_uuid]
        return self._message(found[-1]) if found else refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)

    async def GetChains(self, request: point_pb2.GetChainsRequest, context: Any) -> point_pb2.GetChainsResponse:
        by_chain: dict[str, list[FakeLayer]] = defaultdict(list)
        for point in self._world.points:
            if point.context == request.vm_context_id:
                for each in point.layers:
                    by_chain[self._world.layers[each].chain].append(self._world.layers[each])
        return point_pb2.GetChainsResponse(
            chains=[
                point_pb2.Chain(
                    chain_id=chain,
                    disk_id=layers[0].disk_id,
                    full_backup_id=layers[0].job,
                    latest_backup_id=layers[-1].job,
                    total_backups=len(layers),
                    total_size_bytes=1000 * len(layers),
                    current=True,
                    layers=[layer_message(layer) for layer in layers],
                )
                for chain, layers in by_chain.items()
            ]
        )

    async def DeletePoint(self, request: point_pb2.DeletePointRequest, context: Any) -> point_pb2.DeletePointResponse:
        world = self._world
        await world.enter("DeletePoint")
        place = next(n for n, each in enumerate(world.points) if each.backup_id == request.backup_id)
        point = world.points[place]
        builders = [
            each
            for each in world.points[place + 1 :]
            if each.vm_uuid == point.vm_uuid and any(world.layers[x].parent for x in each.layers)
        ]
        if builders and not request.cascade:
            refuse("HAS_DEPENDANTS", ", ".join(each.backup_id for each in builders))
        gone = [*reversed(builders), point]
        if not request.dry_run:
            world.fence("repository", request.holder.job_id, request.holder.attempt)
            for each in gone:
                world.points.remove(each)
                for layer in each.layers:
                    del world.layers[layer]
        return point_pb2.DeletePointResponse(backup_ids=[each.backup_id for each in gone], freed_bytes=1000 * len(gone))

    async def LeasePoint(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")

    async def ReleaseLease(self, request: Any, context: Any) -> Any:
        raise AssertionError("not used")


def layer_message(layer: FakeLayer) -> layer_pb2.Layer:
    return layer_pb2.Layer(
        layer_id=layer.layer_id,
        repository_id="repo-1",
        vm_uuid=layer.vm_uuid,
        disk_id=layer.disk_id,
        disk_identity=layer.identity,
        backup_type=layer.kind,
        backup_id=layer.job,
        parent_layer_id=layer.parent,
        chain_id=layer.chain,
        path=layer.path,
        virtual_size_bytes=len(layer.content),
        stored_bytes=1000,
        change_id=layer.change_id,
        state=layer.state,
        cluster_size_bytes=CLUSTER,
    )


@asynccontextmanager
async def world_serving(settings: ServiceSettings) -> AsyncIterator[World]:
    """Serves the fakes on the Unix sockets where the backup service looks for the real ones."""
    world = World()

    async def fine() -> None:
        return None

    def service(name: str, *servicers: tuple[str, Any, Any]) -> Service:
        return Service(name, [Servicer(*each) for each in servicers], fine)

    services = [
        service(
            "tunnel",
            (
                "sendense.tunnel.v1.TunnelService",
                FakeTunnel(world, settings),
                tunnel_pb2_grpc.add_TunnelServiceServicer_to_server,
            ),
        ),
        service(
            f"agents/{AGENT}",
            (
                "sendense.agent.v1.AgentService",
                FakeAgent(world),
                agent_pb2_grpc.add_AgentServiceServicer_to_server,
            ),
        ),
        service(
            "exports",
            (
                "sendense.exports.v1.ExportService",
                FakeExports(world),
                exports_pb2_grpc.add_ExportServiceServicer_to_server,
            ),
        ),
        service(
            "repository",
            (
                "sendense.repository.v1.RepositoryService",
                FakeRepositories(world),
                repository_pb2_grpc.add_RepositoryServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.LayerService",
                FakeLayers(world),
                layer_pb2_grpc.add_LayerServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.PointService",
                FakePoints(world),
                point_pb2_grpc.add_PointServiceServicer_to_server,
            ),
        ),
    ]
    async with AsyncExitStack() as stack:
        for each in services:
            await stack.enter_async_context(serving(each, settings))
        yield world
