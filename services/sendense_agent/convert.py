"""Between the agent's own types and the messages of its gRPC contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sendense.agent.v1 import agent_pb2
from sendense_agent import model
from sendense_agent.agent import Done
from sendense_agent.plan import Plan
from sendense_blockio.engine import Batch, CopyProgress
from sendense_blockio.extents import Extent
from sendense_blockio.journal import encode_entries

PAGE_AREAS = 10_000


def vm_ref(message: agent_pb2.VmRef) -> model.VmRef:
    """Returns a VM's identity."""
    return model.VmRef(vcenter_uuid=message.vcenter_uuid, vm_uuid=message.vm_uuid)


def holder(message: agent_pb2.Holder) -> model.Holder:
    """Returns for whom something is done."""
    return model.Holder(job_id=message.job_id, attempt=message.attempt, installation_id=message.installation_id)


def vm_message(vm: model.Vm) -> agent_pb2.Vm:
    """Returns a VM as a message."""
    return agent_pb2.Vm(
        vcenter_uuid=vm.vcenter_uuid,
        vm_uuid=vm.vm_uuid,
        moref=vm.moref,
        name=vm.name,
        inventory_path=vm.inventory_path,
        power_state=vm.power_state,
        template=vm.template,
        hardware_version=vm.hardware_version,
        change_tracking_supported=vm.change_tracking_supported,
        change_tracking_enabled=vm.change_tracking_enabled,
        consolidation_needed=vm.consolidation_needed,
        snapshot_count=vm.snapshot_count,
        disks=disk_messages(vm.disks),
        datastore_free_bytes=vm.datastore_free_bytes,
        hardware_json=vm.hardware_json,
        tools_status=vm.tools_status,
        guest_name=vm.guest_name,
        host=vm.host,
        datastores=[
            agent_pb2.Datastore(name=each.name, capacity_bytes=each.capacity_bytes, free_bytes=each.free_bytes)
            for each in vm.datastores
        ],
        snapshots=[_vm_snapshot(each) for each in vm.snapshots],
        tags=vm.tags,
    )


def _vm_snapshot(snapshot: model.VmSnapshot) -> agent_pb2.VmSnapshot:
    message = agent_pb2.VmSnapshot(
        moref=snapshot.moref, name=snapshot.name, job_id=snapshot.job_id, installation_id=snapshot.installation_id
    )
    message.created_at.FromDatetime(snapshot.created_at)
    return message


def disk_messages(disks: Iterable[model.Disk]) -> list[agent_pb2.Disk]:
    """Returns disks as messages."""
    return [
        agent_pb2.Disk(
            device_key=disk.device_key,
            identity=disk.identity,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            file_name=disk.file_name,
            change_id=disk.change_id,
            skip_reason=disk.skip_reason,
            slot=disk.slot,
            datastore=disk.datastore,
        )
        for disk in disks
    ]


def snapshot_message(snapshot: model.Snapshot) -> agent_pb2.Snapshot:
    """Returns a snapshot as a message."""
    message = agent_pb2.Snapshot(
        moref=snapshot.moref,
        name=snapshot.name,
        disks=disk_messages(snapshot.disks),
        quiesced=snapshot.quiesced,
        quiesce_problem=snapshot.quiesce_problem,
        alone=snapshot.alone,
        event_mark=snapshot.event_mark,
    )
    message.created_at.FromDatetime(snapshot.created_at)
    return message


def plan_pages(plan: Plan) -> Iterator[agent_pb2.PlanPage]:
    """Yields a plan in pages; the last one, which may be the only one and empty, has the changed bytes."""
    areas = iter(plan.areas)
    page = list(islice(areas, PAGE_AREAS))
    while True:
        following = list(islice(areas, PAGE_AREAS))
        message = agent_pb2.PlanPage(
            areas=[agent_pb2.PlannedArea(offset=area.offset, length=area.length) for area in page]
        )
        if not following:
            message.changed_bytes = plan.changed_bytes
            yield message
            return
        yield message
        page = following


def extents(areas: Sequence[agent_pb2.PlannedArea]) -> list[Extent]:
    """Returns areas as extents.

    Raises:
        InvalidExtentError: One has a negative offset or no length.
    """
    return [Extent(area.offset, area.length) for area in areas]


def event_message(event: Batch | CopyProgress | Done) -> agent_pb2.CaptureEvent:
    """Returns an event of a capture as a message."""
    if isinstance(event, Batch):
        return agent_pb2.CaptureEvent(
            batch=agent_pb2.CaptureBatch(sequence=event.sequence, entries=encode_entries(event.entries))
        )
    if isinstance(event, CopyProgress):
        return agent_pb2.CaptureEvent(progress=_progress(event))
    return agent_pb2.CaptureEvent(done=agent_pb2.CaptureDone(progress=_progress(event.progress), reader=event.reader))


def _progress(progress: CopyProgress) -> agent_pb2.CaptureProgress:
    return agent_pb2.CaptureProgress(
        done_bytes=progress.bytes_done, total_bytes=progress.bytes_total, zero_bytes=progress.bytes_zero
    )
