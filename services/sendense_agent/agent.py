"""The agent's use cases: each finds the vCenter, checks the fence where something is changed, and does one thing."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

import structlog

from sendense_agent import audit, change_tracking, event_log, snapshots
from sendense_agent.capture import Capture, CaptureJob
from sendense_agent.changed_areas import areas_of
from sendense_agent.crowding import Crowding
from sendense_agent.errors import CaptureInvalid
from sendense_agent.event_log import Finding, Look
from sendense_agent.fencing import Fence
from sendense_agent.inventory import inspect_vm, list_vms, places_of
from sendense_agent.model import Disk, Holder, Mark, Snapshot, Vm, VmRef
from sendense_agent.plan import Plan, make_plan
from sendense_agent.readers.choice import Readers
from sendense_agent.readers.source import DiskSource, find_place, source_of
from sendense_agent.uplink import Uplink
from sendense_agent.vcenter import VCenter, VCenters
from sendense_blockio.engine import Batch, CopyProgress
from sendense_blockio.errors import ExtentError
from sendense_blockio.extents import Extent, check, total
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

REMEMBERED_LOOKS = 100
WAITING_SECONDS = 10.0
"""A capture that waits for its turn says so this often."""


@dataclass(frozen=True)
class Limits:
    """How much happens at a time on one host, and on one datastore.

    Attributes:
        disks: Disks that are read.
        snapshots: Snapshots that are made or removed.
    """

    disks: int = 8
    snapshots: int = 4


@dataclass(frozen=True)
class CaptureOrder:
    """What a caller wants to be captured.

    Attributes:
        vm: The VM.
        holder: For whom.
        snapshot_moref: The snapshot.
        device_key: The disk.
        export_name: Where to.
        fresh_target: Whether zeroes may be skipped.
        first_sequence: Number of the first batch.
        areas: What to copy, sorted and apart.
    """

    vm: VmRef
    holder: Holder
    snapshot_moref: str
    device_key: int
    export_name: str
    fresh_target: bool
    first_sequence: int
    areas: Sequence[Extent]


@dataclass(frozen=True)
class Done:
    """A capture succeeded.

    Attributes:
        progress: Last counters.
        reader: The reader that was used.
    """

    progress: CopyProgress
    reader: str


class Agent:
    """What this agent can do.

    Args:
        vcenters: Its vCenters.
        uplink: Its way to the node.
        readers: Starts the readers of disks.
        fence: Knows the newest attempts.
        limits: How much happens at a time in one place.
    """

    def __init__(
        self,
        vcenters: VCenters,
        uplink: Uplink,
        readers: Readers,
        fence: Fence | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._vcenters = vcenters
        self._uplink = uplink
        self._readers = readers
        self._fence = fence or Fence()
        self._disks_read = Crowding((limits or Limits()).disks)
        self._snapshots_changed = Crowding((limits or Limits()).snapshots)
        self._captures: dict[tuple[str, int], Capture] = {}
        self._looks: OrderedDict[tuple[VmRef, str, str], Look] = OrderedDict()

    async def list_vms(self, name: str) -> list[Vm]:
        """Returns the VMs of all vCenters (of exactly this name, when one is given), by name.

        A vCenter that fails is left out, and named in the log, as long as another one answers.

        Raises:
            SendenseError: All of them failed.
        """
        vcenters = await self._vcenters.all()
        answers = await asyncio.gather(
            *(each.read("list VMs", lambda service: list_vms(service, name)) for each in vcenters),
            return_exceptions=True,
        )
        found: list[Vm] = []
        failures: list[SendenseError] = []
        for vcenter, answer in zip(vcenters, answers, strict=True):
            if isinstance(answer, SendenseError):
                log.warning("a vCenter does not list its VMs", vcenter=vcenter.account.name, error=str(answer))
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += answer
        if len(failures) == len(vcenters):
            raise failures[0]
        return sorted(found, key=lambda vm: (vm.name, vm.vcenter_uuid, vm.moref))

    async def inspect_vm(self, ref: VmRef) -> Vm:
        """Returns a VM with disks, hardware and room."""
        vcenter = await self._vcenter(ref)
        return await vcenter.read("inspect a VM", lambda service: inspect_vm(service, ref))

    async def enable_change_tracking(self, ref: VmRef, holder: Holder) -> Vm:
        """Turns change tracking on."""
        self._fence.admit(holder)
        return await change_tracking.enable_change_tracking(await self._vcenter(ref), ref, holder)

    async def create_snapshot(self, ref: VmRef, holder: Holder, *, quiesce: bool) -> Snapshot:
        """Makes or joins the job's snapshot."""
        self._fence.admit(holder)
        vcenter = await self._vcenter(ref)
        async with self._snapshots_changed.inside(await _places(vcenter, ref)):
            self._fence.admit(holder)
            return await snapshots.create_snapshot(vcenter, ref, holder, quiesce=quiesce)

    async def remove_snapshot(self, ref: VmRef, holder: Holder, moref: str) -> list[str]:
        """Removes the job's snapshot; a capture of the job that still runs is ended before."""
        self._fence.admit(holder)
        for (job_id, _), capture in list(self._captures.items()):
            if job_id == holder.job_id:
                await capture.end()
        vcenter = await self._vcenter(ref)
        async with self._snapshots_changed.inside(await _places(vcenter, ref)):
            self._fence.admit(holder)
            return await snapshots.remove_snapshot(vcenter, ref, holder, moref)

    async def look_for_revert(self, ref: VmRef, since: str, own: str) -> Look:
        """Tells from the event log whether a VM was reverted between two marks, as `Snapshot.event_mark` has them.

        What the log told once about these marks is remembered: it is asked for each disk of a job.
        """
        if (ref, since, own) in self._looks:
            return self._looks[ref, since, own]
        since_mark, own_mark = Mark.parse(since), Mark.parse(own)
        if since_mark is None or own_mark is None:
            missing = "parent's" if since_mark is None else "job's own"
            return Look(Finding.INCOMPLETE, f"the event log could not be read when the {missing} snapshot was made")
        look = await event_log.look_for_revert(await self._vcenter(ref), ref, since_mark, own_mark)
        if look.finding is not Finding.INCOMPLETE:
            self._looks[ref, since, own] = look
            while len(self._looks) > REMEMBERED_LOOKS:
                self._looks.popitem(last=False)
        return look

    async def plan(self, ref: VmRef, snapshot_moref: str, device_key: int, parent: str, alignment: int) -> Plan:
        """Returns what must be copied of a snapshot's disk."""
        vcenter = await self._vcenter(ref)
        disk, areas = await vcenter.read(
            "ask for changed areas", lambda service: areas_of(service, ref, snapshot_moref, device_key, parent)
        )
        return await asyncio.to_thread(make_plan, areas, alignment, disk.capacity_bytes)

    async def capture(self, order: CaptureOrder) -> AsyncGenerator[Batch | CopyProgress | Done]:
        """Copies areas of a disk into an export; a capture of the same job and disk that runs still is ended before.

        Raises:
            CaptureInvalid: The areas overlap or lie behind the disk's end.
            CaptureFailed: The copy ended early.
            ReaderUnsuitable: No reader can read the disk.
            SendenseError: vCenter, snapshot or tunnel are not there.
        """
        self._fence.admit(order.holder)
        vcenter = await self._vcenter(order.vm)
        source = await _source(vcenter, order.vm, order.snapshot_moref, order.device_key)
        disk = source.disk
        try:
            areas = list(check(order.areas, disk.capacity_bytes))
        except ExtentError as error:
            raise CaptureInvalid(f"the areas of {disk} cannot be: {error}") from error
        places = await _places(vcenter, order.vm)
        while not await self._disks_read.enter(places, WAITING_SECONDS):
            yield CopyProgress(bytes_total=total(areas))  # it waits for its turn, and nobody shall think it stalled
        async with self._leaving(places), self._only_capture(order, disk, areas) as capture:
            events = capture.run(self._readers.open(source, vcenter.check_account), self._uplink.lane())
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
            yield Done(capture.progress, capture.reader)

    async def digests(
        self, ref: VmRef, holder: Holder, snapshot_moref: str, device_key: int, blocks: Sequence[Extent]
    ) -> AsyncGenerator[list[bytes]]:
        """Reads blocks of a snapshot's disk and yields their digests, in pages.

        Raises:
            CaptureInvalid: The blocks overlap, are too long, or lie behind the disk's end.
            CaptureFailed: A block could not be read.
            ReaderUnsuitable: No reader can read the disk.
            SendenseError: vCenter or snapshot are not there.
        """
        self._fence.admit(holder)
        vcenter = await self._vcenter(ref)
        source = await _source(vcenter, ref, snapshot_moref, device_key)
        try:
            wanted = list(check(blocks, source.disk.capacity_bytes))
        except ExtentError as error:
            raise CaptureInvalid(f"the blocks of {source.disk} cannot be: {error}") from error
        if any(block.length > audit.LARGEST_READ for block in wanted):
            raise CaptureInvalid(f"a block of {source.disk} is longer than {audit.LARGEST_READ} bytes")
        if not wanted:
            return
        async with (
            self._disks_read.inside(await _places(vcenter, ref)),
            self._readers.open(source, vcenter.check_account) as opened,
            contextlib.aclosing(audit.digests_of(opened, wanted)) as pages,
        ):
            async for page in pages:
                yield page

    @contextlib.asynccontextmanager
    async def _leaving(self, places: Sequence[str]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._disks_read.leave(places)

    @contextlib.asynccontextmanager
    async def _only_capture(self, order: CaptureOrder, disk: Disk, areas: list[Extent]) -> AsyncIterator[Capture]:
        key = (order.holder.job_id, order.device_key)
        running = self._captures.get(key)
        if running is not None:
            log.info("ending the capture that runs still", job=order.holder.job_id, disk=str(disk))
            await running.end()
        self._fence.admit(order.holder)
        job = CaptureJob(disk, areas, order.export_name, order.fresh_target, order.first_sequence)
        capture = self._captures[key] = Capture(job, self._uplink.pace)
        try:
            yield capture
        finally:
            if self._captures.get(key) is capture:
                del self._captures[key]

    async def _vcenter(self, ref: VmRef) -> VCenter:
        return await self._vcenters.by_uuid(ref.vcenter_uuid, ref.vm_uuid)


async def _places(vcenter: VCenter, ref: VmRef) -> tuple[str, ...]:
    return await vcenter.read("find the VM's host and datastores", lambda service: places_of(service, ref))


async def _source(vcenter: VCenter, ref: VmRef, snapshot_moref: str, device_key: int) -> DiskSource:
    """Returns a snapshot's disk with all that a reader needs."""
    place = await vcenter.read(
        "read the snapshot's disk", lambda service: find_place(service, ref, snapshot_moref, device_key)
    )
    pin = await vcenter.pin()
    return await asyncio.to_thread(source_of, vcenter.account, pin, place)
