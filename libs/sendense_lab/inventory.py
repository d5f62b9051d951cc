"""The inventory as vCenter shows it: which managed objects exist and what their properties are.

Objects: one datacenter with a VM folder (and a folder below it for each name that VMs use), one host in one
compute resource, one datastore, the VMs and their snapshots, tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from sendense_lab import placeview, vmview
from sendense_lab.lab import Lab
from sendense_lab.tasks import LabTask

ROOT_FOLDER = "group-d1"
DATACENTER = "datacenter-2"
VM_FOLDER = "group-v3"
HOST_FOLDER = "group-h4"
DATASTORE_FOLDER = "group-s5"
NETWORK_FOLDER = "group-n6"
COMPUTE = "domain-s7"
RESOURCE_POOL = "resgroup-8"
API_VERSION = "8.0.3.0"

PROPERTY_COLLECTOR = "propertyCollector"
SESSION_MANAGER = "SessionManager"
VIEW_MANAGER = "ViewManager"
SEARCH_INDEX = "SearchIndex"
TASK_MANAGER = "TaskManager"
EVENT_MANAGER = "EventManager"
CUSTOM_FIELDS_MANAGER = "CustomFieldsManager"

Reader = Callable[[], Any]


class Inventory:
    """Looks up managed objects by their ids and reads their properties."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def exists(self, ref: Any) -> bool:
        """Whether a reference names an object that is there now."""
        return self._readers(ref) is not None

    def get(self, ref: Any, name: str) -> Any:
        """Returns a property of an object by its first-level name; None when it is not set.

        Raises:
            vmodl.fault.ManagedObjectNotFound: The object is gone.
        """
        readers = self._readers(ref)
        if readers is None:
            raise vmodl.fault.ManagedObjectNotFound(
                obj=ref,
                msg=f"The object {ref._GetMoId()} has already been deleted",  # noqa: SLF001
            )
        reader = readers.get(name)
        return reader() if reader else None

    def known_properties(self, ref: Any) -> list[str]:
        """Returns the names of the first-level properties that the lab can tell of an object."""
        return list(self._readers(ref) or ())

    def folder_ids(self) -> dict[str, str]:
        """Returns the folders below the VM folder: name to managed object id."""
        return self._lab.record.folders

    def vms(self) -> list[Any]:
        """Returns references to all VMs."""
        return [vim.VirtualMachine(moref) for moref in list(self._lab.machines)]

    def descendants(self, container: Any) -> Iterable[Any]:
        """Yields everything below a folder, datacenter or compute resource, at any depth."""
        for name in ("childEntity", "vmFolder", "hostFolder", "datastoreFolder", "networkFolder", "host", "datastore"):
            value = self.get(container, name)
            for child in value if isinstance(value, list) else [value] if value is not None else []:
                yield child
                if not isinstance(child, vim.VirtualMachine | vim.Datastore | vim.HostSystem):
                    yield from self.descendants(child)

    def _readers(self, ref: Any) -> dict[str, Reader] | None:
        moref = ref._GetMoId()  # noqa: SLF001 - pyVmomi offers no other name for it
        if isinstance(ref, vim.VirtualMachine):
            machine = self._lab.machines.get(moref)
            if machine is None:
                return None
            parent = self.folder_ids().get(machine.record.folder, VM_FOLDER)
            return vmview.vm_properties(machine, self._lab, vim.Folder(parent), RESOURCE_POOL)
        if isinstance(ref, vim.vm.Snapshot):
            found = self._lab.find_snapshot(moref)
            return vmview.snapshot_properties(*found) if found else None
        if isinstance(ref, vim.Task):
            task = self._lab.tasks.get(moref)
            return {"info": lambda: task_info(task)} if task else None
        return self._fixed().get(moref)

    def _fixed(self) -> dict[str, dict[str, Reader]]:
        """Returns the readers of the objects that every lab has."""
        folders = self.folder_ids()
        hosts, datastores = placeview.references(self._lab)
        table: dict[str, dict[str, Reader]] = {
            "ServiceInstance": {
                "content": lambda: service_content(self._lab),
                "serverClock": lambda: datetime.now(UTC),
            },
            ROOT_FOLDER: _folder("Datacenters", None, lambda: [vim.Datacenter(DATACENTER)], ["Folder", "Datacenter"]),
            DATACENTER: {
                "name": lambda: "lab",
                "parent": lambda: vim.Folder(ROOT_FOLDER),
                "vmFolder": lambda: vim.Folder(VM_FOLDER),
                "hostFolder": lambda: vim.Folder(HOST_FOLDER),
                "datastoreFolder": lambda: vim.Folder(DATASTORE_FOLDER),
                "networkFolder": lambda: vim.Folder(NETWORK_FOLDER),
                "datastore": lambda: datastores,
            },
            VM_FOLDER: _folder(
                "vm", vim.Datacenter(DATACENTER), self._vm_folder_children, ["Folder", "VirtualMachine"]
            ),
            HOST_FOLDER: _folder(
                "host", vim.Datacenter(DATACENTER), lambda: [vim.ComputeResource(COMPUTE)], ["ComputeResource"]
            ),
            DATASTORE_FOLDER: _folder("datastore", vim.Datacenter(DATACENTER), lambda: datastores, ["Datastore"]),
            NETWORK_FOLDER: _folder("network", vim.Datacenter(DATACENTER), list, ["Network"]),
            COMPUTE: {
                "name": lambda: "lab-host.local",
                "parent": lambda: vim.Folder(HOST_FOLDER),
                "host": lambda: hosts,
                "datastore": lambda: datastores,
                "resourcePool": lambda: vim.ResourcePool(RESOURCE_POOL),
            },
            RESOURCE_POOL: {
                "name": lambda: "Resources",
                "parent": lambda: vim.ComputeResource(COMPUTE),
                "owner": lambda: vim.ComputeResource(COMPUTE),
                "vm": self.vms,
            },
            TASK_MANAGER: {"recentTask": lambda: [vim.Task(task.moref) for task in self._lab.tasks.all()]},
            EVENT_MANAGER: {"maxCollector": lambda: 32},
            PROPERTY_COLLECTOR: {"filter": list},
            SESSION_MANAGER: {},
            VIEW_MANAGER: {"viewList": list},
            SEARCH_INDEX: {},
            CUSTOM_FIELDS_MANAGER: {"field": lambda: _fields(self._lab)},
        }
        for name, moref in folders.items():
            table[moref] = _folder(
                name, vim.Folder(VM_FOLDER), functools.partial(self._in_folder, name), ["Folder", "VirtualMachine"]
            )
        for place in self._lab.record.hosts:
            table[place.moref] = placeview.host(self._lab, place, vim.ComputeResource(COMPUTE))
        for place in self._lab.record.datastores:
            table[place.moref] = placeview.datastore(self._lab, place, vim.Folder(DATASTORE_FOLDER))
        return table

    def _in_folder(self, folder: str) -> list[Any]:
        return [
            vim.VirtualMachine(moref)
            for moref, machine in list(self._lab.machines.items())
            if machine.record.folder == folder
        ]

    def _vm_folder_children(self) -> list[Any]:
        return [vim.Folder(moref) for moref in self.folder_ids().values()] + self._in_folder("")


def service_content(lab: Lab) -> Any:
    """Returns what RetrieveServiceContent answers."""
    return vim.ServiceInstanceContent(
        rootFolder=vim.Folder(ROOT_FOLDER),
        propertyCollector=vmodl.query.PropertyCollector(PROPERTY_COLLECTOR),
        viewManager=vim.view.ViewManager(VIEW_MANAGER),
        sessionManager=vim.SessionManager(SESSION_MANAGER),
        searchIndex=vim.SearchIndex(SEARCH_INDEX),
        taskManager=vim.TaskManager(TASK_MANAGER),
        eventManager=vim.event.EventManager(EVENT_MANAGER),
        customFieldsManager=vim.CustomFieldsManager(CUSTOM_FIELDS_MANAGER),
        about=vim.AboutInfo(
            name="VMware vCenter Server",
            fullName="Sendense lab vCenter Server 8.0.3 (simulated)",
            vendor="Sendense",
            version="8.0.3",
            build="0",
            osType="linux-x64",
            productLineId="vpx",
            apiType="VirtualCenter",
            apiVersion=API_VERSION,
            instanceUuid=lab.record.instance_uuid,
        ),
    )


def _fields(lab: Lab) -> list[Any]:
    return [
        vim.CustomFieldsManager.FieldDef(
            key=lab.attribute_key(name), name=name, type=str, managedObjectType=vim.VirtualMachine
        )
        for name in lab.record.attributes
    ]


def task_info(task: LabTask) -> Any:
    """Returns a task as vim.TaskInfo."""
    return vim.TaskInfo(
        key=task.moref,
        task=vim.Task(task.moref),
        name=getattr(vim.VirtualMachine, task.name.removesuffix("_Task"), None),
        descriptionId=task.description_id,
        entity=vim.VirtualMachine(task.entity),
        entityName=task.entity_name,
        state=task.state,
        cancelled=False,
        cancelable=False,
        error=task.error,
        result=task.result,
        progress=task.progress if task.state == "running" else None,
        reason=vim.TaskReasonUser(userName="sendense@lab.local"),
        queueTime=task.queued,
        startTime=task.started,
        completeTime=task.completed,
        eventChainId=int(task.moref.removeprefix("task-")),
    )


def _folder(name: str, parent: Any, children: Reader, kinds: list[str]) -> dict[str, Reader]:
    types = {"VirtualMachine": vim.VirtualMachine, "Folder": vim.Folder, "Datacenter": vim.Datacenter}
    types |= {"ComputeResource": vim.ComputeResource, "Datastore": vim.Datastore, "Network": vim.Network}
    return {
        "name": lambda: name,
        "parent": lambda: parent,
        "childEntity": children,
        "childType": lambda: [types[kind] for kind in kinds],
    }
