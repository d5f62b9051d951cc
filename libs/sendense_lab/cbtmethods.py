"""QueryChangedDiskAreas: pages, refusals, and all the ways in which it can be told to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab import areas, faults, tracking, vimfaults
from sendense_lab.areas import GRANULARITY
from sendense_lab.call import Call, invalid
from sendense_lab.deviceview import datastore_path
from sendense_lab.lab import Lab
from sendense_lab.records import Device, SnapshotRecord, VmRecord


class CbtMethods:
    """The one method of change tracking."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def handlers(self) -> dict[str, Callable[[Call], Any]]:
        """Returns the method by its wsdl name."""
        return {"QueryChangedDiskAreas": self.query_changed_areas}

    def query_changed_areas(self, call: Call) -> Any:
        """QueryChangedDiskAreas, in pages."""
        machine = self._lab.machines.get(call.moref)
        if machine is None:
            raise call.gone()
        record = machine.record
        snapshot = _snapshot_of(call, record)
        key = call.argument("deviceKey")
        device: Device | None = snapshot.disk(key) if snapshot else record.disk(key)
        if device is None:
            raise invalid("deviceKey")
        start, since = call.argument("startOffset"), call.argument("changeId") or ""
        if start is None or not 0 <= start < device.capacity:
            raise invalid("startOffset")
        self._spoil(call, record, device, since)
        try:
            changed = self._lab.shown_areas(machine, snapshot, device, since)
        except tracking.ChangeIdError as err:
            raise invalid("changeId") from err
        except tracking.TrackingResetError as err:
            path = datastore_path(record, record.layers[device.top].descriptor, device.datastore)
            raise vim.fault.FileFault(file=path, msg=f"Error caused by file {path}: {err.message}") from err
        length, shown = areas.page(changed, start, device.capacity, self._lab.page_areas(machine, device))
        start, length = self._bend(record, device, start, length)
        info = vim.VirtualMachine.DiskChangeInfo
        return info(
            startOffset=start,
            length=length,
            changedArea=[info.DiskChangeExtent(start=begin, length=end - begin) for begin, end in shown],
        )

    def _spoil(self, call: Call, record: VmRecord, device: Device, since: str) -> None:
        query = "allocated" if since == "*" else "changed"
        fault = self._lab.faults.take(
            faults.CbtError, vm=record.instance_uuid, disk=device.uuid, fits=lambda fault: fault.query in ("any", query)
        )
        if fault is not None:
            path = datastore_path(record, record.layers[device.top].descriptor, device.datastore)
            raise vimfaults.make(fault.error, call.request.this, file=path, invalidProperty="changeId")

    def _bend(self, record: VmRecord, device: Device, start: int, length: int) -> tuple[int, int]:
        """Returns start and length as the answer claims them."""
        vm, disk = record.instance_uuid, device.uuid
        if self._lab.faults.take(faults.CbtZeroLength, vm=vm, disk=disk):
            length = 0
        if self._lab.faults.take(faults.CbtWrongStart, vm=vm, disk=disk):
            start += GRANULARITY
        if self._lab.faults.take(faults.CbtPastEnd, vm=vm, disk=disk):
            length = device.capacity - start + GRANULARITY
        return start, length


def _snapshot_of(call: Call, record: VmRecord) -> SnapshotRecord | None:
    reference = call.argument("snapshot")
    if reference is None:
        if record.power_state == "poweredOn" and not record.snapshots:
            raise invalid("snapshot")
        return record.snapshot(record.current)
    snapshot = record.snapshot(reference._GetMoId())  # noqa: SLF001
    if snapshot is None:
        raise vmodl.fault.ManagedObjectNotFound(obj=reference, msg="The snapshot has already been deleted")
    return snapshot
