"""A VM's controllers and disks as vSphere's data objects, with the backings of all layers."""

from __future__ import annotations

import uuid
from typing import Any

from pyVmomi import vim

from sendense_lab import tracking
from sendense_lab.records import (
    DATASTORE,
    Controller,
    Device,
    DiskRecord,
    Layer,
    Place,
    SnapshotDisk,
    SnapshotRecord,
    VmRecord,
)

CONTROLLER_KEY = 1000
_Disk = vim.vm.device.VirtualDisk


def datastore_path(record: VmRecord, file: str, datastore: Place = DATASTORE) -> str:
    """Returns a file of the VM in vSphere's notation: `[datastore] folder/file`."""
    return f"[{datastore.name}] {record.directory}/{file}"


def devices(record: VmRecord, snapshot: SnapshotRecord | None) -> list[Any]:
    """Returns a VM's devices, now or as a snapshot froze them; the disks in the order of the VM's list."""
    disks: tuple[Device, ...] = snapshot.disks if snapshot else record.disks
    controllers = snapshot.controllers if snapshot else record.controllers
    return [
        *(_controller(controller, disks) for controller in controllers),
        *(_disk(record, disk) for disk in disks),
    ]


def encryption_key(record: VmRecord) -> Any:
    """Returns the id of the key with which a VM is encrypted, None when it is not."""
    if not record.encrypted:
        return None
    provider = vim.encryption.KeyProviderId(id="lab-kms")
    return vim.encryption.CryptoKeyId(keyId=uuid.uuid5(uuid.UUID(record.instance_uuid), "key").hex, providerId=provider)


def _controller(controller: Controller, disks: tuple[Device, ...]) -> Any:
    return vim.vm.device.ParaVirtualSCSIController(
        key=CONTROLLER_KEY + controller.bus,
        deviceInfo=vim.Description(label=f"SCSI controller {controller.bus}", summary="VMware paravirtual SCSI"),
        controllerKey=100,
        unitNumber=3 + controller.bus,
        busNumber=controller.bus,
        device=[disk.key for disk in disks if disk.bus == controller.bus],
        hotAddRemove=True,
        sharedBus=controller.sharing,
        scsiCtlrUnitNumber=7,
    )


def _disk(record: VmRecord, disk: Device) -> Any:
    backing: Any = None
    for layer in record.chain(disk.top):
        backing = _raw_mapping(record, disk, layer, backing) if disk.mapping else _flat(record, disk, layer, backing)
    backing.changeId = _change_id(disk)
    return _Disk(
        key=disk.key,
        deviceInfo=vim.Description(label=disk.label, summary=f"{disk.capacity // 1024:,} KB"),
        backing=backing,
        controllerKey=CONTROLLER_KEY + disk.bus,
        unitNumber=disk.unit,
        capacityInKB=disk.capacity // 1024,
        capacityInBytes=disk.capacity,
        diskObjectId=f"1-{disk.key}",
    )


def _change_id(disk: Device) -> str | None:
    if isinstance(disk, SnapshotDisk):
        return disk.change_id
    return tracking.change_id(disk.tracking) if isinstance(disk, DiskRecord) else None


def _flat(record: VmRecord, disk: Device, layer: Layer, parent: Any) -> Any:
    return _Disk.FlatVer2BackingInfo(
        fileName=datastore_path(record, layer.descriptor, disk.datastore),
        datastore=vim.Datastore(disk.datastore.moref),
        diskMode=disk.mode,
        split=False,
        writeThrough=False,
        thinProvisioned=True,
        uuid=disk.uuid,
        contentId=_content_id(disk, layer),
        parent=parent,
        digestEnabled=False,
        sharing=_sharing(disk),
        keyId=encryption_key(record),
    )


def _raw_mapping(record: VmRecord, disk: Device, layer: Layer, parent: Any) -> Any:
    return _Disk.RawDiskMappingVer1BackingInfo(
        fileName=datastore_path(record, layer.descriptor, disk.datastore),
        datastore=vim.Datastore(disk.datastore.moref),
        lunUuid=f"02000000{uuid.UUID(disk.uuid).hex}",
        deviceName=f"vml.02000000{uuid.UUID(disk.uuid).hex}",
        compatibilityMode=disk.mapping,
        diskMode=disk.mode,
        uuid=disk.uuid,
        contentId=_content_id(disk, layer),
        parent=parent,
        sharing=_sharing(disk),
    )


def _content_id(disk: Device, layer: Layer) -> str:
    return uuid.uuid5(uuid.UUID(disk.uuid), layer.file).hex


def _sharing(disk: Device) -> str:
    return "sharingMultiWriter" if disk.multi_writer else "sharingNone"
