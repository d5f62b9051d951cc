"""Virtual disks in a VM's hardware: identity, backing, and why one cannot be captured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyVmomi import vim

from sendense_agent.model import Disk
from sendense_agent.properties import moref_of

_device = vim.vm.device


def disks_of(devices: Iterable[Any]) -> tuple[Disk, ...]:
    """Returns the disks among a VM's devices, by device key."""
    devices = list(devices)
    controllers = {each.key: each for each in devices if isinstance(each, _device.VirtualController)}
    disks = [
        _disk(each, controllers.get(each.controllerKey or 0))
        for each in devices
        if isinstance(each, _device.VirtualDisk)
    ]
    return tuple(sorted(disks, key=lambda disk: disk.device_key))


def _disk(device: Any, controller: Any) -> Disk:
    backing = device.backing
    datastore = getattr(backing, "datastore", None)
    return Disk(
        device_key=int(device.key),
        identity=f"{getattr(backing, 'uuid', None) or 'no-uuid'}/{device.key}",
        label=str(device.deviceInfo.label) if device.deviceInfo else f"disk {device.key}",
        capacity_bytes=int(device.capacityInBytes or device.capacityInKB * 1024),
        file_name=str(getattr(backing, "fileName", "") or ""),
        change_id=str(getattr(backing, "changeId", "") or ""),
        skip_reason=skip_reason(device, controller),
        is_delta=getattr(backing, "parent", None) is not None,
        datastore_moref=moref_of(datastore) if datastore is not None else "",
        slot=_slot(device, controller),
    )


def _slot(device: Any, controller: Any) -> str:
    if controller is None or device.unitNumber is None:
        return ""
    label = str(controller.deviceInfo.label) if controller.deviceInfo else f"controller {controller.key}"
    return f"{label}:{device.unitNumber}"


def skip_reason(device: Any, controller: Any) -> str:
    """Returns why a snapshot does not hold a disk; empty when it does.

    Independent disks and physical RDMs are left out of snapshots; a disk or bus shared by VMs has no change tracking
    and its VM no snapshots (cbt-facts 11).
    """
    backing = device.backing
    if str(getattr(backing, "diskMode", "") or "").startswith("independent"):
        return "independent disk"
    if (
        isinstance(backing, _device.VirtualDisk.RawDiskMappingVer1BackingInfo)
        and backing.compatibilityMode == "physicalMode"
    ):
        return "physical raw device mapping"
    if getattr(backing, "sharing", None) == "sharingMultiWriter":
        return "disk shared by several writers"
    if str(getattr(controller, "sharedBus", "noSharing") or "noSharing") != "noSharing":
        return "disk on a shared bus"
    return ""
