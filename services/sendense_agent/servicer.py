"""The agent's gRPC edge: each RPC calls one use case."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sendense.agent.v1 import agent_pb2, agent_pb2_grpc
from sendense_agent import convert
from sendense_agent.agent import Agent, CaptureOrder
from sendense_agent.errors import CaptureInvalid
from sendense_blockio.errors import ExtentError
from sendense_blockio.extents import Extent

MAX_AREAS = 4_000_000
"""Areas of one capture: with fewer, agent and caller stay within a few hundred MiB; a plan bridges long before."""
SMALLEST_ALIGNMENT, LARGEST_ALIGNMENT = 512, 32 << 20


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """Offers the agent to the backup service."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def ListVms(self, request: agent_pb2.ListVmsRequest, context: Any) -> agent_pb2.ListVmsResponse:
        """Lists the VMs of all vCenters."""
        del context
        vms = await self._agent.list_vms(request.name)
        return agent_pb2.ListVmsResponse(vms=[convert.vm_message(vm) for vm in vms])

    async def InspectVm(self, request: agent_pb2.InspectVmRequest, context: Any) -> agent_pb2.Vm:
        """Returns a VM with its disks."""
        del context
        return convert.vm_message(await self._agent.inspect_vm(convert.vm_ref(request.vm)))

    async def EnableChangeTracking(self, request: agent_pb2.EnableChangeTrackingRequest, context: Any) -> agent_pb2.Vm:
        """Turns change tracking on."""
        del context
        vm = await self._agent.enable_change_tracking(convert.vm_ref(request.vm), convert.holder(request.holder))
        return convert.vm_message(vm)

    async def CreateSnapshot(self, request: agent_pb2.CreateSnapshotRequest, context: Any) -> agent_pb2.Snapshot:
        """Makes or joins the job's snapshot."""
        del context
        snapshot = await self._agent.create_snapshot(
            convert.vm_ref(request.vm), convert.holder(request.holder), quiesce=request.quiesce
        )
        return convert.snapshot_message(snapshot)

    async def RemoveSnapshot(
        self, request: agent_pb2.RemoveSnapshotRequest, context: Any
    ) -> agent_pb2.RemoveSnapshotResponse:
        """Removes the job's snapshot."""
        del context
        removed = await self._agent.remove_snapshot(
            convert.vm_ref(request.vm), convert.holder(request.holder), request.moref
        )
        return agent_pb2.RemoveSnapshotResponse(removed_morefs=removed)

    async def LookForRevert(
        self, request: agent_pb2.LookForRevertRequest, context: Any
    ) -> agent_pb2.LookForRevertResponse:
        """Tells whether a VM was reverted to a snapshot."""
        del context
        look = await self._agent.look_for_revert(
            convert.vm_ref(request.vm), request.since_event_mark, request.own_event_mark
        )
        return agent_pb2.LookForRevertResponse(finding=look.finding.value, detail=look.detail)

    async def PlanCapture(
        self, request: agent_pb2.PlanCaptureRequest, context: Any
    ) -> AsyncIterator[agent_pb2.PlanPage]:
        """Streams what must be copied of a disk."""
        del context
        alignment = request.alignment_bytes
        if not SMALLEST_ALIGNMENT <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise CaptureInvalid(f"alignment_bytes is {alignment}, not a power of two from 512 to 32 MiB")
        plan = await self._agent.plan(
            convert.vm_ref(request.vm),
            request.snapshot_moref,
            request.device_key,
            request.parent_change_id,
            alignment,
        )
        for page in convert.plan_pages(plan):
            yield page

    async def DigestBlocks(
        self, request_iterator: AsyncIterator[agent_pb2.DigestBlocksRequest], context: Any
    ) -> AsyncIterator[agent_pb2.DigestPage]:
        """Reads blocks of a disk and streams their digests."""
        del context
        source, blocks = await _digest_order(request_iterator)
        pages = self._agent.digests(
            convert.vm_ref(source.vm),
            convert.holder(source.holder),
            source.snapshot_moref,
            source.device_key,
            blocks,
        )
        async with contextlib.aclosing(pages):
            async for page in pages:
                yield agent_pb2.DigestPage(digests=page)

    async def Capture(
        self, request_iterator: AsyncIterator[agent_pb2.CaptureRequest], context: Any
    ) -> AsyncIterator[agent_pb2.CaptureEvent]:
        """Copies areas of a disk into an export."""
        del context
        order = await _order(request_iterator)
        async with contextlib.aclosing(self._agent.capture(order)) as events:
            async for event in events:
                yield convert.event_message(event)


async def _digest_order(
    requests: AsyncIterator[agent_pb2.DigestBlocksRequest],
) -> tuple[agent_pb2.DigestSource, list[Extent]]:
    """Reads a whole request: the disk first, then blocks until the caller half-closes."""
    source: agent_pb2.DigestSource | None = None
    blocks: list[Extent] = []
    async for request in requests:
        if request.HasField("source") == (source is not None):
            raise CaptureInvalid("the first request, and no other, says which disk")
        source = source or request.source
        try:
            blocks += convert.extents(request.blocks)
        except ExtentError as error:
            raise CaptureInvalid(str(error)) from error
        if len(blocks) > MAX_AREAS:
            raise CaptureInvalid(f"more than {MAX_AREAS} blocks")
    if source is None:
        raise CaptureInvalid("nothing was asked for")
    return source, blocks


async def _order(requests: AsyncIterator[agent_pb2.CaptureRequest]) -> CaptureOrder:
    """Reads a whole request: the target first, then areas until the caller half-closes."""
    target: agent_pb2.CaptureTarget | None = None
    areas: list[Extent] = []
    async for request in requests:
        if request.HasField("target") == (target is not None):
            raise CaptureInvalid("the first request, and no other, says what to capture")
        target = target or request.target
        try:
            areas += convert.extents(request.areas)
        except ExtentError as error:
            raise CaptureInvalid(str(error)) from error
        if len(areas) > MAX_AREAS:
            raise CaptureInvalid(f"more than {MAX_AREAS} areas")
    if target is None:
        raise CaptureInvalid("nothing was asked for")
    return CaptureOrder(
        vm=convert.vm_ref(target.vm),
        holder=convert.holder(target.holder),
        snapshot_moref=target.snapshot_moref,
        device_key=target.device_key,
        export_name=target.export_name,
        fresh_target=target.fresh_target,
        first_sequence=target.first_sequence,
        areas=areas,
    )
