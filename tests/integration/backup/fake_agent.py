"""Fakes of the tunnel and of an agent: snapshots freeze the disks, a capture copies real bytes through an export."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from backup_world import (
    AGENT,
    CLUSTER,
    INSTALLATION_SNAPSHOT_PREFIX,
    FakeDisk,
    FakeSnapshot,
    FakeVm,
    World,
    refuse,
    the_rest_fails,
)
from blake3 import blake3
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_blockio.extents import Extent, normalize, total
from sendense_blockio.journal import Entry, encode_entries
from sendense_rpc.errors import Kind
from sendense_rpc.settings import ServiceSettings


@the_rest_fails
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


@the_rest_fails
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
        await self._world.enter("EnableChangeTracking", request.holder.job_id)
        self._world.fence("agent", request.holder.job_id, request.holder.attempt)
        vm = self._world.vm(request.vm)
        if vm.snapshots or vm.foreign_snapshots:
            refuse("CBT_NEEDS_NO_SNAPSHOT")
        vm.tracking = True
        return self._message(vm)

    async def CreateSnapshot(self, request: agent_pb2.CreateSnapshotRequest, context: Any) -> agent_pb2.Snapshot:
        await self._world.enter("CreateSnapshot", request.holder.job_id)
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
        await self._world.enter("RemoveSnapshot", request.holder.job_id)
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

    async def DigestBlocks(
        self, requests: AsyncIterator[agent_pb2.DigestBlocksRequest], context: Any
    ) -> AsyncIterator[agent_pb2.DigestPage]:
        source, blocks = None, []
        async for request in requests:
            if source is None:
                source = request.source
            blocks.extend(request.blocks)
        assert source is not None
        await self._world.enter("DigestBlocks", source.holder.job_id)
        self._world.fence("agent", source.holder.job_id, source.holder.attempt)
        content = self._snapshot(self._world.vm(source.vm), source.snapshot_moref).disks[source.device_key]
        yield agent_pb2.DigestPage(
            digests=[blake3(content[block.offset : block.offset + block.length]).digest() for block in blocks]
        )

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
        await world.enter("Capture", target.holder.job_id)
        world.fence("agent", target.holder.job_id, target.holder.attempt)
        vm = world.vm(target.vm)
        content = self._snapshot(vm, target.snapshot_moref).disks[target.device_key]
        if vm.capture_faults:
            refuse(vm.capture_faults.pop(0), kind=Kind.ABORTED)
        export = world.exports.get(target.export_name) or refuse("CAPTURE_FAILED", "no such export")
        if export.agent_id != AGENT or export.read_only:
            refuse("CAPTURE_FAILED", "the export is not for this agent")
        layer = next(each for each in world.layers.values() if each.path == export.path)
        if target.fresh_target != (layer.kind == "full"):
            refuse("CAPTURE_FAILED", "fresh_target contradicts the layer")
        done, sequence = 0, target.first_sequence
        goal = total(areas)
        world.capturing[target.snapshot_moref] += 1
        world.most_captures = max(world.most_captures, sum(world.capturing.values()))
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
