"""Hosts and datastores as vSphere's managed objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim

from sendense_lab.lab import Lab
from sendense_lab.records import Place

Reader = Callable[[], Any]


def references(lab: Lab) -> tuple[list[Any], list[Any]]:
    """Returns references to all hosts and to all datastores."""
    record = lab.record
    hosts = [vim.HostSystem(place.moref) for place in record.hosts]
    return hosts, [vim.Datastore(place.moref) for place in record.datastores]


def host(lab: Lab, place: Place, compute: Any) -> dict[str, Reader]:
    """Returns the readers of a host's properties."""
    return {
        "name": lambda: place.name,
        "parent": lambda: compute,
        "vm": lambda: [vim.VirtualMachine(m.record.moref) for m in _machines(lab) if m.record.host == place],
        "datastore": lambda: references(lab)[1],
        "runtime": lambda: vim.host.RuntimeInfo(
            connectionState="connected", powerState="poweredOn", inMaintenanceMode=False
        ),
    }


def datastore(lab: Lab, place: Place, parent: Any) -> dict[str, Reader]:
    """Returns the readers of a datastore's properties."""
    path = f"/vmfs/volumes/{place.name}"
    mount = vim.host.MountInfo(path=path, accessMode="readWrite", accessible=True)
    return {
        "name": lambda: place.name,
        "parent": lambda: parent,
        "summary": lambda: _summary(lab, place),
        "info": lambda: _info(lab, place),
        "vm": lambda: [vim.VirtualMachine(m.record.moref) for m in _machines(lab) if place in m.record.datastores],
        "host": lambda: [vim.Datastore.HostMount(key=key, mountInfo=mount) for key in references(lab)[0]],
    }


def _machines(lab: Lab) -> list[Any]:
    return list(lab.machines.values())


def _summary(lab: Lab, place: Place) -> Any:
    capacity, free = lab.free_bytes(place)
    return vim.Datastore.Summary(
        datastore=vim.Datastore(place.moref),
        name=place.name,
        url=f"ds:///vmfs/volumes/{place.name}/",
        capacity=capacity,
        freeSpace=free,
        accessible=True,
        multipleHostAccess=len(lab.record.hosts) > 1,
        type="VMFS",
        maintenanceMode="normal",
    )


def _info(lab: Lab, place: Place) -> Any:
    _, free = lab.free_bytes(place)
    url = f"ds:///vmfs/volumes/{place.name}/"
    return vim.Datastore.Info(name=place.name, url=url, freeSpace=free, maxFileSize=free)
