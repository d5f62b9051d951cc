"""What the vSphere API does to virtual machines: snapshots, reconfiguration, power."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab import faults, hardware, snapshots, vimfaults
from sendense_lab.call import Call
from sendense_lab.deviceview import datastore_path
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import VmRecord
from sendense_lab.vmview import supports_tracking

MAX_NAME = 80


class VmMethods:
    """Methods of VirtualMachine and VirtualMachineSnapshot that start tasks."""

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
            record = machine.record
            _require_snapshots_possible(record)
            self._spoil(faults.SnapshotCreate, machine)
            if quiesce and record.power_state == "poweredOn" and record.tools == "running":
                self._spoil(faults.Quiesce, machine)
            for place in record.datastores:
                if self._lab.free_bytes(place)[1] == 0:
                    path = datastore_path(record, record.directory, place)
                    raise vim.fault.NoDiskSpace(file=path, datastore=place.name, msg=f"No space left for {path}")
            snapshot = self._lab.create_snapshot(machine, name, description, quiesce=quiesce)
            return vim.vm.Snapshot(snapshot.moref)

        return self._task(call, machine, "createSnapshot", work)

    def remove_snapshot(self, call: Call) -> Any:
        """RemoveSnapshot_Task."""
        machine, moref = self._of_snapshot(call)
        children = bool(call.argument("removeChildren"))
        merge = call.argument("consolidate") is not False

        def work() -> None:
            self._spoil(faults.SnapshotRemove, machine)
            self._lab.remove_snapshot(machine, moref, children=children, merge=merge and self._merges(machine))

        return self._task(call, machine, "removeSnapshot", work)

    def remove_all_snapshots(self, call: Call) -> Any:
        """RemoveAllSnapshots_Task."""
        machine = self._machine(call)

        def work() -> None:
            self._spoil(faults.SnapshotRemove, machine)
            for root in machine.record.children(None):
                self._lab.remove_snapshot(machine, root.moref, children=True, merge=self._merges(machine))

        return self._task(call, machine, "removeAllSnapshots", work)

    def revert_to_snapshot(self, call: Call) -> Any:
        """RevertToSnapshot_Task."""
        machine, moref = self._of_snapshot(call)
        return self._task(call, machine, "revertToSnapshot", lambda: self._revert(machine, moref))

    def revert_to_current(self, call: Call) -> Any:
        """RevertToCurrentSnapshot_Task."""
        machine = self._machine(call)

        def work() -> None:
            if machine.record.current is None:
                raise vim.fault.NotFound(msg="The VM has no current snapshot")
            self._revert(machine, machine.record.current)

        return self._task(call, machine, "revertToCurrentSnapshot", work)

    def _revert(self, machine: Machine, moref: str) -> None:
        self._lab.revert(machine, moref)

    def consolidate(self, call: Call) -> Any:
        """ConsolidateVMDisks_Task."""
        machine = self._machine(call)

        def work() -> None:
            self._spoil(faults.Consolidation, machine)
            snapshots.consolidate(machine)

        return self._task(call, machine, "consolidateDisks", work)

    def reconfigure(self, call: Call) -> Any:
        """ReconfigVM_Task; the lab changes changeTrackingEnabled only."""
        machine = self._machine(call)
        wanted = call.argument("spec").changeTrackingEnabled

        def work() -> None:
            if wanted is not None:
                _set_tracking(machine, bool(wanted))
                self._lab.events.add("VmReconfiguredEvent", machine.record, f"Reconfigured {machine.record.name}")

        return self._task(call, machine, "reconfigure", work)

    def power_on(self, call: Call) -> Any:
        """PowerOnVM_Task."""
        machine = self._machine(call)

        def work() -> None:
            _require_power(machine, "poweredOff")
            self._lab.set_power(machine, "poweredOn")

        return self._task(call, machine, "powerOn", work)

    def power_off(self, call: Call) -> Any:
        """PowerOffVM_Task."""
        machine = self._machine(call)

        def work() -> None:
            _require_power(machine, "poweredOn")
            self._lab.set_power(machine, "poweredOff")

        return self._task(call, machine, "powerOff", work)

    def handlers(self) -> dict[str, Callable[[Call], Any]]:
        """Returns the methods by their wsdl names."""
        return {
            "CreateSnapshot_Task": self.create_snapshot,
            "CreateSnapshotEx_Task": self.create_snapshot,
            "RemoveSnapshot_Task": self.remove_snapshot,
            "RemoveAllSnapshots_Task": self.remove_all_snapshots,
            "RevertToSnapshot_Task": self.revert_to_snapshot,
            "RevertToCurrentSnapshot_Task": self.revert_to_current,
            "ConsolidateVMDisks_Task": self.consolidate,
            "ReconfigVM_Task": self.reconfigure,
            "PowerOnVM_Task": self.power_on,
            "PowerOffVM_Task": self.power_off,
        }

    def _machine(self, call: Call) -> Machine:
        machine = self._lab.machines.get(call.moref)
        if machine is None:
            raise call.gone()
        return machine

    def _of_snapshot(self, call: Call) -> tuple[Machine, str]:
        found = self._lab.find_snapshot(call.moref)
        if found is None:
            raise call.gone()
        return found[0], found[1].moref

    def _merges(self, machine: Machine) -> bool:
        """Whether files can be merged after a removal; if not, the removal itself still succeeds."""
        return self._lab.faults.take(faults.Consolidation, vm=machine.record.instance_uuid) is None

    def _spoil(
        self,
        kind: type[faults.SnapshotCreate | faults.SnapshotRemove | faults.Consolidation | faults.Quiesce],
        machine: Machine,
    ) -> None:
        fault = self._lab.faults.take(kind, vm=machine.record.instance_uuid)
        if fault is not None:
            raise _made(fault.error, machine.record)

    def _task(self, call: Call, machine: Machine, name: str, work: Callable[[], Any]) -> Any:
        record, method = machine.record, call.request.method

        def spoilable() -> Any:
            vm = record.instance_uuid
            delay = self._lab.faults.take(faults.TaskDelay, vm=vm, fits=lambda fault: fault.fits(method))
            if delay:
                time.sleep(delay.ms / 1000)
            error = self._lab.faults.take(faults.TaskError, vm=vm, fits=lambda fault: fault.fits(method))
            if error:
                raise _made(error.error, record)
            return work()

        title = name[0].upper() + name[1:]
        return vim.Task(self._lab.tasks.start(title, f"VirtualMachine.{name}", record.moref, record.name, spoilable))


def _made(error: str, record: VmRecord) -> Any:
    return vimfaults.make(
        error, vim.VirtualMachine(record.moref), file=datastore_path(record, record.directory), datastore="labstore"
    )


def _require_snapshots_possible(record: VmRecord) -> None:
    if record.template:
        raise vmodl.fault.NotSupported(msg=f"{record.name} is a template")
    if record.connection != "connected":
        raise vim.fault.InvalidState(msg=f"{record.name} is {record.connection}")
    if any(controller.sharing != "noSharing" for controller in record.controllers) or any(
        disk.multi_writer for disk in record.disks
    ):
        raise vim.fault.SnapshotIncompatibleDeviceInVm(
            fault=vmodl.fault.NotSupported(msg="a bus is shared"),
            msg=f"{record.name} has a disk or a bus that is shared with other VMs",
        )


def _require_power(machine: Machine, state: str) -> None:
    record = machine.record
    if record.template:
        raise vmodl.fault.NotSupported(msg=f"{record.name} is a template")
    if record.power_state != state:
        raise vim.fault.InvalidPowerState(
            existingState=record.power_state, requestedState=state, msg=f"The VM is {record.power_state} already"
        )


def _set_tracking(machine: Machine, enabled: bool) -> None:
    with machine.lock:
        record = machine.record
        if enabled and not supports_tracking(record):
            raise vmodl.fault.NotSupported(msg="Change tracking is not supported by this VM's hardware")
        if enabled != record.tracking_enabled and record.snapshots:
            raise vim.fault.InvalidSnapshotFormat(msg="Change tracking cannot be changed while the VM has snapshots")
        hardware.set_tracking(machine, enabled)
