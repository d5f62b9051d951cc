"""Lists and inspects VMs: one query for all VMs, one for a VM with all of its hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from pyVmomi import vim

from sendense_agent import hardware
from sendense_agent.disks import disks_of
from sendense_agent.errors import VmAmbiguous, VmNotFound
from sendense_agent.labels import label_of
from sendense_agent.model import Datastore, Disk, Vm, VmRef, VmSnapshot
from sendense_agent.properties import moref_of, read_all, read_around, read_some, step

log = structlog.get_logger()

_LIST_PATHS = (
    "name",
    "parent",
    "config.instanceUuid",
    "config.template",
    "config.version",
    "config.changeTrackingEnabled",
    "capability.changeTrackingSupported",
    "runtime.powerState",
    "runtime.consolidationNeeded",
    "guest.toolsRunningStatus",
    "config.guestFullName",
    "snapshot",
    "customValue",
)
_ONE_PATHS = (*_LIST_PATHS, "runtime.host", *hardware.PATHS)
_FOLDER_PATHS = ("name", "parent")
_KINDS_ABOVE: dict[Any, Sequence[str]] = {vim.Folder: _FOLDER_PATHS, vim.Datacenter: _FOLDER_PATHS}
_UP = step(vim.ManagedEntity, "parent", again=True)
_AROUND_ONE = (
    _UP,
    step(vim.VirtualMachine, "datastore"),
    step(vim.VirtualMachine, "runtime.host"),
)
_KINDS_AROUND_ONE: dict[Any, Sequence[str]] = {
    **_KINDS_ABOVE,
    vim.VirtualMachine: tuple(dict.fromkeys(_ONE_PATHS)),
    vim.Datastore: ("name", "summary.capacity", "summary.freeSpace"),
    vim.HostSystem: ("name",),
}
"""One query tells all about a VM; object after object it took six."""


def list_vms(service: Any, name: str = "") -> list[Vm]:
    """Returns the VMs of a vCenter, by name; those that it cannot read now are left out and logged.

    Args:
        service: pyVmomi's service instance.
        name: Only VMs of exactly this name; empty for all.
    """
    vcenter_uuid = str(service.content.about.instanceUuid)
    machines, folders = [], {}
    kinds: dict[Any, Sequence[str]] = {
        vim.VirtualMachine: _LIST_PATHS,
        vim.Folder: _FOLDER_PATHS,
        vim.Datacenter: _FOLDER_PATHS,
    }
    for managed, properties in read_all(service, kinds):
        if isinstance(managed, vim.VirtualMachine):
            machines.append((moref_of(managed), properties))
        else:
            folders[moref_of(managed)] = properties
    fields = _fields(service, (properties for _, properties in machines))
    vms = []
    for moref, properties in machines:
        if not properties.get("config.instanceUuid"):
            log.warning("a VM has no readable configuration", moref=moref, name=properties.get("name"))
        elif not name or properties.get("name") == name:
            vms.append(_vm(vcenter_uuid, moref, properties, _path(properties, folders), fields))
    return sorted(vms, key=lambda vm: (vm.name, vm.inventory_path))


def find_vm(service: Any, ref: VmRef) -> Any:
    """Returns the managed object of a VM.

    Raises:
        VmNotFound: There is none.
        VmAmbiguous: There are several.
    """
    found = service.content.searchIndex.FindAllByUuid(None, ref.vm_uuid, True, True)  # noqa: FBT003  # VMs, instance
    if not found:
        raise VmNotFound(ref.vcenter_uuid, ref.vm_uuid)
    if len(found) > 1:
        raise VmAmbiguous(ref.vm_uuid, [moref_of(each) for each in found])
    return found[0]


def inspect_vm(service: Any, ref: VmRef) -> Vm:
    """Returns a VM with its disks, hardware and the room on its datastores.

    Raises:
        VmNotFound: There is none.
        VmAmbiguous: There are several.
    """
    managed = find_vm(service, ref)
    moref = moref_of(managed)
    found = read_around(service, managed, _AROUND_ONE, _KINDS_AROUND_ONE)
    properties = next((facts for each, facts in found if moref_of(each) == moref), {})
    if not properties.get("config.hardware"):
        raise VmNotFound(ref.vcenter_uuid, ref.vm_uuid)
    disks = disks_of(properties["config.hardware"].device)
    datastores = _datastores(found, disks)
    host = properties.get("runtime.host")
    hosts = {moref_of(each): str(facts.get("name", "")) for each, facts in found if isinstance(each, vim.HostSystem)}
    names = {each.moref: each.name for each in datastores}
    above = {moref_of(each): facts for each, facts in found if isinstance(each, (vim.Folder, vim.Datacenter))}
    fields = _fields(service, [properties])
    vm = _vm(ref.vcenter_uuid, moref, properties, _path(properties, above), fields)
    return dataclasses.replace(
        vm,
        disks=tuple(dataclasses.replace(disk, datastore=names.get(disk.datastore_moref, "")) for disk in disks),
        datastores=datastores,
        datastore_free_bytes=min((each.free_bytes for each in datastores), default=0),
        hardware_json=hardware.hardware_json(properties),
        snapshots=tuple(_snapshot(node) for node in walk_snapshots(properties.get("snapshot"))),
        host_moref=moref_of(host) if host is not None else "",
        host=hosts.get(moref_of(host), "") if host is not None else "",
    )


def datacenter_path(service: Any, vm: Any) -> str:
    """Returns the path of the VM's datacenter below the root folder, as the datastore's HTTPS folder wants it."""
    around = read_around(service, vm, (_UP,), {vim.VirtualMachine: ("parent",), **_KINDS_ABOVE})
    found = {moref_of(managed): (managed, facts) for managed, facts in around}
    names: list[str] = []
    managed, facts = found.get(moref_of(vm), (vm, {}))
    while (parent := facts.get("parent")) is not None:
        if names or isinstance(managed, vim.Datacenter):
            names.append(str(facts["name"]))
        managed, facts = found.get(moref_of(parent), (parent, {}))
    return "/".join(reversed(names))


def places_of(service: Any, ref: VmRef) -> tuple[str, ...]:
    """Returns where a VM is: managed object ids of its host and of its datastores, with their vCenter."""
    vm = find_vm(service, ref)
    facts = read_some(service, [vm], ("runtime.host", "datastore")).get(moref_of(vm), {})
    found = [facts.get("runtime.host"), *(facts.get("datastore") or [])]
    return tuple(f"{ref.vcenter_uuid}/{moref_of(each)}" for each in found if each is not None)


def count_snapshots(info: Any) -> int:
    """Returns how many snapshots a VM's snapshot tree holds."""
    return sum(1 for _ in walk_snapshots(info))


def walk_snapshots(info: Any) -> Iterable[Any]:
    """Yields the nodes of a VM's snapshot tree, parents first; nothing when there is none."""
    nodes = list(info.rootSnapshotList) if info is not None else []
    while nodes:
        node = nodes.pop(0)
        yield node
        nodes.extend(node.childSnapshotList or [])


def _vm(
    vcenter_uuid: str,
    moref: str,
    properties: dict[str, Any],
    path: str,
    fields: Mapping[int, str],
) -> Vm:
    return Vm(
        vcenter_uuid=vcenter_uuid,
        vm_uuid=str(properties["config.instanceUuid"]),
        moref=moref,
        name=_unescaped(properties.get("name", "")),
        inventory_path=path,
        power_state=str(properties.get("runtime.powerState", "")),
        template=bool(properties.get("config.template", False)),
        hardware_version=str(properties.get("config.version", "")),
        change_tracking_supported=bool(properties.get("capability.changeTrackingSupported", False)),
        change_tracking_enabled=bool(properties.get("config.changeTrackingEnabled", False)),
        consolidation_needed=bool(properties.get("runtime.consolidationNeeded", False)),
        snapshot_count=count_snapshots(properties.get("snapshot")),
        tools_status=str(properties.get("guest.toolsRunningStatus", "")),
        guest_name=str(properties.get("config.guestFullName", "")),
        tags=tuple(
            sorted(
                f"{fields[each.key]}={each.value}" for each in properties.get("customValue") or [] if each.key in fields
            )
        ),
    )


def _fields(service: Any, of: Iterable[dict[str, Any]]) -> dict[int, str]:
    """Returns the names of custom attributes by key; asks only when one of the objects has any."""
    manager = service.content.customFieldsManager  # a single host has none
    if manager is None or not any(properties.get("customValue") for properties in of):
        return {}
    return {int(each.key): str(each.name) for each in manager.field}


def _snapshot(node: Any) -> VmSnapshot:
    label = label_of(node.description)
    return VmSnapshot(
        moref=moref_of(node.snapshot),
        name=str(node.name),
        created_at=node.createTime,
        job_id=label.holder.job_id if label else "",
        installation_id=label.holder.installation_id if label else "",
    )


def _unescaped(name: str) -> str:
    """Undoes vCenter's escapes in names of inventory objects."""
    return name.replace("%2f", "/").replace("%2F", "/").replace("%5c", "\\").replace("%5C", "\\").replace("%25", "%")


def _path(properties: dict[str, Any], folders: dict[str, dict[str, Any]]) -> str:
    names = [str(properties.get("name", ""))]
    parent = properties.get("parent")
    while parent is not None and moref_of(parent) in folders:
        entry = folders[moref_of(parent)]
        parent = entry.get("parent")
        if parent is not None:  # the root folder has none, and is in no path
            names.append(str(entry.get("name", "")))
    return "/" + "/".join(reversed(names))


def _datastores(found: Sequence[tuple[Any, dict[str, Any]]], disks: tuple[Disk, ...]) -> tuple[Datastore, ...]:
    """Returns the datastores that hold disks, by name."""
    wanted = {disk.datastore_moref for disk in disks}
    datastores = [
        Datastore(
            moref_of(each),
            _unescaped(str(facts.get("name", ""))),
            int(facts.get("summary.capacity", 0)),
            int(facts["summary.freeSpace"]),
        )
        for each, facts in found
        if isinstance(each, vim.Datastore) and moref_of(each) in wanted and "summary.freeSpace" in facts
    ]
    return tuple(sorted(datastores, key=lambda each: each.name))
