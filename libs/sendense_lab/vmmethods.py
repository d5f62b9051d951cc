"""What the vSphere API does to virtual machines: snapshots, reconfiguration, power, changed areas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab import areas, snapshots, tracking
from sendense_lab.call import Call, invalid
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import PowerState, SnapshotRecord, VmRecord
from sendense_lab.vmview import FIRST_VERSION_WITH_TRACKING, datastore_path

MAX_NAME = 80


class VmMethods:
    """Methods of VirtualMachine and VirtualMachineSnapshot."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def create_snapshot(self, call: Call) -> Any:
        """CreateSnapshot_Task and CreateSnapshotEx_Task."""
        machine = self._machine(call)
        name, description = call.argument("name") or "", call.argument("description") or ""
        if not name or len(name) > MAX_NAME:
            raise vim.fault.InvalidName(name=name, msg=f"A snapshot's name has 1 to {MAX_NAME} characters")
        quiesce = bool(call.argument("quiesce") or call.argument("quiesceSpec"))

        def work() -> Any:
            snapshot = self._lab.create_snapshot(machine, name, description, quiesce=quiesce)
            return vim.vm.Snapshot(snapshot.moref)

        return self._task(machine.record, "createSnapshot", work)

    def remove_snapshot(self, call: Call) -> Any:
        """RemoveSnapshot_Task."""
        found = self._lab.find_snapshot(call.moref)
        if found is None:
            raise call.gone()
        machine, snapshot = found
        children = bool(call.argument("removeChildren"))
        consolidate = call.argument("consolidate") is not False

        def work() -> None:
            self._lab.remove_snapshot(machine, snapshot.moref, children=children, consolidate=consolidate)

        return self._task(machine.record, "removeSnapshot", work)

    def remove_all_snapshots(self, call: Call) -> Any:
        """RemoveAllSnapshots_Task."""
        machine = self._machine(call)

        def work() -> None:
            if machine.record.snapshots:
                first = machine.record.snapshots[0].moref
                self._lab.remove_snapshot(machine, first, children=True, consolidate=True)

        return self._task(machine.record, "removeAllSnapshots", work)

    def consolidate(self, call: Call) -> Any:
        """ConsolidateVMDisks_Task."""
        machine = self._machine(call)
        return self._task(machine.record, "consolidateDisks", lambda: snapshots.consolidate(machine))

    def reconfigure(self, call: Call) -> Any:
        """ReconfigVM_Task; the lab changes changeTrackingEnabled only."""
        machine = self._machine(call)
        wanted = call.argument("spec").changeTrackingEnabled

        def work() -> None:
            if wanted is not None:
                _set_tracking(machine, bool(wanted))

        return self._task(machine.record, "reconfigure", work)

    def query_changed_areas(self, call: Call) -> Any:
        """QueryChangedDiskAreas, in pages."""
        machine = self._machine(call)
        record = machine.record
        disk = record.disk(call.argument("deviceKey"))
        if disk is None:
            raise invalid("deviceKey")
        start = call.argument("startOffset")
        snapshot = self._snapshot_of(call, record)
        capacity = snapshot.disks[disk.key].capacity if snapshot else disk.capacity
        if start is None or not 0 <= start < capacity:
            raise invalid("startOffset")
        try:
            changed = self._lab.changed_areas(machine, disk, snapshot, call.argument("changeId") or "")
        except tracking.ChangeIdError as err:
            raise invalid("changeId") from err
        except tracking.TrackingResetError as err:
            path = datastore_path(record, disk.top.descriptor)
            raise vim.fault.FileFault(file=path, msg=f"Error caused by file {path}: {err.message}") from err
        length, shown = areas.page(changed, start, capacity, self._lab.page_areas)
        info = vim.VirtualMachine.DiskChangeInfo
        return info(
            startOffset=start,
            length=length,
            changedArea=[info.DiskChangeExtent(start=begin, length=end - begin) for begin, end in shown],
        )

    def _snapshot_of(self, call: Call, record: VmRecord) -> SnapshotRecord | None:
        reference = call.argument("snapshot")
        if reference is None:
            if record.power_state == "poweredOn" and not record.snapshots:
                raise invalid("snapshot")
            return record.snapshots[-1] if record.snapshots else None
        snapshot = record.snapshot(reference._GetMoId())  # noqa: SLF001
        if snapshot is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=reference, msg="The snapshot has already been deleted")
        if call.argument("deviceKey") not in snapshot.disks:
            raise invalid("deviceKey")
        return snapshot

    def power_on(self, call: Call) -> Any:
        """PowerOnVM_Task."""
        return self._power(call, "poweredOn", "powerOn")

    def power_off(self, call: Call) -> Any:
        """PowerOffVM_Task."""
        return self._power(call, "poweredOff", "powerOff")

    def _power(self, call: Call, state: PowerState, name: str) -> Any:
        machine = self._machine(call)

        def work() -> None:
            with machine.lock:
                if machine.record.power_state == state:
                    raise vim.fault.InvalidPowerState(
                        existingState=state, requestedState=state, msg="The VM is in that state already"
                    )
                machine.save(_stunned(machine.record.model_copy(update={"power_state": state})))

        return self._task(machine.record, name, work)

    def handlers(self) -> dict[str, Callable[[Call], Any]]:
        """Returns the methods by their wsdl names."""
        return {
            "CreateSnapshot_Task": self.create_snapshot,
            "CreateSnapshotEx_Task": self.create_snapshot,
            "RemoveSnapshot_Task": self.remove_snapshot,
            "RemoveAllSnapshots_Task": self.remove_all_snapshots,
            "ConsolidateVMDisks_Task": self.consolidate,
            "ReconfigVM_Task": self.reconfigure,
            "QueryChangedDiskAreas": self.query_changed_areas,
            "PowerOnVM_Task": self.power_on,
            "PowerOffVM_Task": self.power_off,
        }

    def _machine(self, call: Call) -> Machine:
        machine = self._lab.machines.get(call.moref)
        if machine is None:
            raise call.gone()
        return machine

    def _task(self, record: VmRecord, name: str, work: Callable[[], Any]) -> Any:
        method = name[0].upper() + name[1:]
        return vim.Task(self._lab.tasks.start(method, f"VirtualMachine.{name}", record.moref, record.name, work))


def _set_tracking(machine: Machine, enabled: bool) -> None:
    with machine.lock:
        record = machine.record
        if enabled and record.hardware_version < FIRST_VERSION_WITH_TRACKING:
            raise vmodl.fault.NotSupported(msg="Change tracking needs hardware version 7 or later")
        if enabled != record.tracking_enabled and record.snapshots:
            raise vim.fault.InvalidSnapshotFormat(msg="Change tracking cannot be changed while the VM has snapshots")
        record = record.model_copy(update={"tracking_enabled": enabled})
        machine.save(record if record.power_state == "poweredOn" else _stunned(record))


def _stunned(record: VmRecord) -> VmRecord:
    """Lets the disks follow the tracking setting, as at every stun or power cycle."""
    disks = tuple(tracking.follow_setting(disk, enabled=record.tracking_enabled) for disk in record.disks)
    return record.model_copy(update={"disks": disks})
