"""Turns change tracking on and makes it effective: a reconfiguration, and a stun cycle where the VM runs."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from sendense_agent.errors import ChangeTrackingNeedsNoSnapshot, ChangeTrackingUnsupported
from sendense_agent.inventory import find_vm, inspect_vm
from sendense_agent.model import Holder, Vm, VmRef
from sendense_agent.properties import moref_of
from sendense_agent.snapshots import create_snapshot, remove_snapshot
from sendense_agent.tasks import wait_for_task
from sendense_agent.vcenter import VCenter

RECONFIGURE_SECONDS = 300.0


async def enable_change_tracking(vcenter: VCenter, ref: VmRef, holder: Holder) -> Vm:
    """Enables change tracking and returns the VM as it is then. What is on already is left alone (cbt-facts 6).

    Raises:
        ChangeTrackingUnsupported: The hardware cannot.
        ChangeTrackingNeedsNoSnapshot: The VM has snapshots.
        VCenterFault: vCenter refused.
    """
    vm = await vcenter.read("inspect a VM", lambda service: inspect_vm(service, ref))
    if vm.change_tracking_enabled:
        return vm
    if not vm.change_tracking_supported:
        raise ChangeTrackingUnsupported(vm.name, vm.hardware_version)
    if vm.snapshot_count:
        raise ChangeTrackingNeedsNoSnapshot(vm.name, vm.snapshot_count)

    def start(service: Any) -> str:
        return moref_of(find_vm(service, ref).ReconfigVM_Task(spec=vim.vm.ConfigSpec(changeTrackingEnabled=True)))

    task = await vcenter.change("enable change tracking", start)
    await wait_for_task(vcenter, task, "enable change tracking", RECONFIGURE_SECONDS)
    if vm.power_state == "poweredOn":
        # It carries the job's description: should the agent die here, the job's release removes it.
        snapshot = await create_snapshot(vcenter, ref, holder, quiesce=False)
        await remove_snapshot(vcenter, ref, holder, snapshot.moref)
    return await vcenter.read("inspect a VM", lambda service: inspect_vm(service, ref))
