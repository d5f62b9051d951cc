"""Virtual machines and snapshots as vSphere's data objects: hardware, disks with their backings, snapshot tree."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from sendense_lab import tracking
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import DiskRecord, Layer, SnapshotRecord, VmRecord
from sendense_lab.store import DATASTORE

CONTROLLER_KEY = 1000
FIRST_VERSION_WITH_TRACKING = 7
Reader = Callable[[], Any]


def vm_properties(machine: Machine, lab: Lab, parent: Any, host: str, datastore: str, pool: str) -> dict[str, Reader]:
    """Returns the readers of a VM's properties, by name."""
    record = machine.record
    return {
        "name": lambda: record.name,
        "parent": lambda: parent,
        "config": lambda: vm_config(record),
        "capability": lambda: _capability(record),
        "runtime": lambda: _runtime(record, host),
        "summary": lambda: _summary(record, host),
        "guest": lambda: _guest(record),
        "snapshot": lambda: _snapshot_info(record),
        "rootSnapshot": lambda: [vim.vm.Snapshot(snapshot.moref) for snapshot in record.snapshots[:1]],
        "datastore": lambda: [vim.Datastore(datastore)],
        "network": list,
        "resourcePool": lambda: vim.ResourcePool(pool),
        "layoutEx": lambda: _layout(machine),
        "guestHeartbeatStatus": lambda: "green" if record.power_state == "poweredOn" else "gray",
        "overallStatus": lambda: "yellow" if record.consolidation_needed else "green",
        "recentTask": lambda: [vim.Task(task.moref) for task in lab.tasks.all() if task.entity == record.moref],
    }


def snapshot_properties(machine: Machine, snapshot: SnapshotRecord) -> dict[str, Reader]:
    """Returns the readers of a snapshot's properties, by name."""
    record = machine.record
    position = record.snapshots.index(snapshot)
    return {
        "config": lambda: vm_config(record, snapshot),
        "childSnapshot": lambda: [vim.vm.Snapshot(s.moref) for s in record.snapshots[position + 1 : position + 2]],
        "vm": lambda: vim.VirtualMachine(record.moref),
    }


def datastore_path(record: VmRecord, file: str) -> str:
    """Returns a file of the VM in vSphere's notation: `[datastore] folder/file`."""
    return f"[{DATASTORE}] {record.directory}/{file}"


def vm_config(record: VmRecord, snapshot: SnapshotRecord | None = None) -> Any:
    """Returns a VM's configuration, now or as a snapshot froze it."""
    return vim.vm.ConfigInfo(
        changeVersion="1",
        modified=datetime.fromtimestamp(0, UTC),
        name=record.name,
        guestFullName="Debian GNU/Linux 12 (64-bit)",
        guestId="debian12_64Guest",
        version=f"vmx-{record.hardware_version:02d}",
        uuid=record.uuid,
        instanceUuid=record.instance_uuid,
        template=record.template,
        annotation="",
        files=vim.vm.FileInfo(
            vmPathName=datastore_path(record, f"{record.directory}.vmx"),
            snapshotDirectory=f"[{DATASTORE}] {record.directory}/",
            logDirectory=f"[{DATASTORE}] {record.directory}/",
        ),
        flags=vim.vm.FlagInfo(),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(),
        hardware=vim.vm.VirtualHardware(
            numCPU=record.cpus,
            numCoresPerSocket=1,
            memoryMB=record.memory_mb,
            device=_devices(record, snapshot),
        ),
        changeTrackingEnabled=record.tracking_enabled,
        firmware="efi",
    )


def _devices(record: VmRecord, snapshot: SnapshotRecord | None) -> list[Any]:
    disks = []
    for disk in record.disks:
        frozen = snapshot.disks.get(disk.key) if snapshot else None
        if snapshot is not None and frozen is None:
            continue
        top = next(layer for layer in disk.chain if layer.file == frozen.layer) if frozen else disk.top
        change_id = frozen.change_id if frozen else tracking.change_id(disk.tracking)
        disks.append(_disk(record, disk, top, change_id, frozen.capacity if frozen else disk.capacity))
    controller = vim.vm.device.ParaVirtualSCSIController(
        key=CONTROLLER_KEY,
        deviceInfo=vim.Description(label="SCSI controller 0", summary="VMware paravirtual SCSI"),
        controllerKey=100,
        unitNumber=3,
        busNumber=0,
        device=[disk.key for disk in disks],
        hotAddRemove=True,
        sharedBus="noSharing",
        scsiCtlrUnitNumber=7,
    )
    return [controller, *disks]


def _disk(record: VmRecord, disk: DiskRecord, top: Layer, change_id: str | None, capacity: int) -> Any:
    backing = None
    for layer in disk.chain[: disk.chain.index(top) + 1]:
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=datastore_path(record, layer.descriptor),
            datastore=vim.Datastore("datastore-10"),
            diskMode="persistent",
            split=False,
            writeThrough=False,
            thinProvisioned=True,
            uuid=disk.uuid,
            contentId=uuid.uuid5(uuid.UUID(disk.uuid), layer.file).hex,
            parent=backing,
            digestEnabled=False,
        )
    if backing is not None:
        backing.changeId = change_id
    return vim.vm.device.VirtualDisk(
        key=disk.key,
        deviceInfo=vim.Description(label=disk.label, summary=f"{capacity // 1024:,} KB"),
        backing=backing,
        controllerKey=CONTROLLER_KEY,
        unitNumber=disk.unit,
        capacityInKB=capacity // 1024,
        capacityInBytes=capacity,
        diskObjectId=f"1-{disk.key}",
    )


def _capability(record: VmRecord) -> Any:
    return vim.vm.Capability(
        snapshotOperationsSupported=True,
        multipleSnapshotsSupported=True,
        quiescedSnapshotsSupported=True,
        memorySnapshotsSupported=True,
        diskSharesSupported=True,
        changeTrackingSupported=record.hardware_version >= FIRST_VERSION_WITH_TRACKING,
    )


def _runtime(record: VmRecord, host: str) -> Any:
    return vim.vm.RuntimeInfo(
        host=vim.HostSystem(host),
        connectionState="connected",
        powerState=record.power_state,
        consolidationNeeded=record.consolidation_needed,
        toolsInstallerMounted=False,
        faultToleranceState="notConfigured",
        recordReplayState="inactive",
        numMksConnections=0,
    )


def _summary(record: VmRecord, host: str) -> Any:
    return vim.vm.Summary(
        vm=vim.VirtualMachine(record.moref),
        runtime=_runtime(record, host),
        config=vim.vm.Summary.ConfigSummary(
            name=record.name,
            template=record.template,
            vmPathName=datastore_path(record, f"{record.directory}.vmx"),
            memorySizeMB=record.memory_mb,
            numCpu=record.cpus,
            uuid=record.uuid,
            instanceUuid=record.instance_uuid,
            guestId="debian12_64Guest",
            guestFullName="Debian GNU/Linux 12 (64-bit)",
            numVirtualDisks=len(record.disks),
        ),
        quickStats=vim.vm.Summary.QuickStats(guestHeartbeatStatus="green"),
        overallStatus="green",
    )


def _guest(record: VmRecord) -> Any:
    running = record.power_state == "poweredOn"
    return vim.vm.GuestInfo(
        toolsStatus="toolsOk" if running else "toolsNotRunning",
        toolsRunningStatus="guestToolsRunning" if running else "guestToolsNotRunning",
        toolsVersionStatus2="guestToolsUnmanaged",
        guestId="debian12_64Guest",
        guestFullName="Debian GNU/Linux 12 (64-bit)",
        guestFamily="linuxGuest",
        hostName=record.name,
        guestState="running" if running else "notRunning",
        disk=[],
        net=[],
    )


def _snapshot_info(record: VmRecord) -> Any:
    if not record.snapshots:
        return None
    children: list[Any] = []
    for snapshot in reversed(record.snapshots):
        children = [
            vim.vm.SnapshotTree(
                snapshot=vim.vm.Snapshot(snapshot.moref),
                vm=vim.VirtualMachine(record.moref),
                name=snapshot.name,
                description=snapshot.description,
                id=snapshot.number,
                createTime=snapshot.created,
                state=snapshot.power_state,
                quiesced=snapshot.quiesced,
                replaySupported=False,
                childSnapshotList=children,
            )
        ]
    return vim.vm.SnapshotInfo(currentSnapshot=vim.vm.Snapshot(record.snapshots[-1].moref), rootSnapshotList=children)


def _layout(machine: Machine) -> Any:
    record = machine.record
    files: list[Any] = []
    for disk in record.disks:
        for layer in disk.chain:
            key = len(files)
            path = machine.directory / layer.file
            files.append(
                vim.vm.FileLayoutEx.FileInfo(
                    key=key,
                    name=datastore_path(record, layer.file),
                    type="diskExtent",
                    size=path.stat().st_blocks * 512,
                    accessible=True,
                )
            )
    return vim.vm.FileLayoutEx(file=files, timestamp=datetime.now(UTC))
