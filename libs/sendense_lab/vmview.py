"""Virtual machines and snapshots as vSphere's data objects: hardware, disks with their backings, snapshot tree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from sendense_lab import deviceview, vmfiles
from sendense_lab.deviceview import datastore_path
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import SnapshotRecord, VmRecord

UNREADABLE = ("inaccessible", "orphaned")
"""Connection states in which vCenter knows a VM's name only."""
FIRST_VERSION_WITH_TRACKING = 7
Reader = Callable[[], Any]


def vm_properties(machine: Machine, lab: Lab, parent: Any, pool: str) -> dict[str, Reader]:
    """Returns the readers of a VM's properties, by name."""
    record = machine.record
    return {
        "name": lambda: record.name,
        "parent": lambda: parent,
        "config": lambda: vm_config(record) if record.connection not in UNREADABLE else None,
        "capability": lambda: _capability(record),
        "runtime": lambda: _runtime(record),
        "summary": lambda: _summary(record),
        "guest": lambda: _guest(record),
        "snapshot": lambda: _snapshot_info(record),
        "rootSnapshot": lambda: [vim.vm.Snapshot(snapshot.moref) for snapshot in record.children(None)],
        "datastore": lambda: [vim.Datastore(place.moref) for place in record.datastores],
        "network": list,
        "customValue": lambda: [
            vim.CustomFieldsManager.StringValue(key=lab.attribute_key(name), value=value)
            for name, value in record.attributes.items()
        ],
        "resourcePool": lambda: vim.ResourcePool(pool),
        "layoutEx": lambda: _layout(machine),
        "guestHeartbeatStatus": lambda: "green" if record.power_state == "poweredOn" else "gray",
        "overallStatus": lambda: "yellow" if record.consolidation_needed else "green",
        "recentTask": lambda: [vim.Task(task.moref) for task in lab.tasks.all() if task.entity == record.moref],
    }


def snapshot_properties(machine: Machine, snapshot: SnapshotRecord) -> dict[str, Reader]:
    """Returns the readers of a snapshot's properties, by name."""
    record = machine.record
    return {
        "config": lambda: vm_config(record, snapshot),
        "childSnapshot": lambda: [vim.vm.Snapshot(child.moref) for child in record.children(snapshot.moref)],
        "vm": lambda: vim.VirtualMachine(record.moref),
    }


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
            snapshotDirectory=datastore_path(record, ""),
            logDirectory=datastore_path(record, ""),
        ),
        flags=vim.vm.FlagInfo(),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(),
        hardware=vim.vm.VirtualHardware(
            numCPU=record.cpus,
            numCoresPerSocket=1,
            memoryMB=record.memory_mb,
            device=deviceview.devices(record, snapshot),
        ),
        changeTrackingEnabled=snapshot.tracking_enabled if snapshot else record.tracking_enabled,
        firmware="efi",
        extraConfig=[vim.option.OptionValue(key="nvram", value=f"{record.directory}.nvram")],
        keyId=deviceview.encryption_key(record),
    )


def supports_tracking(record: VmRecord) -> bool:
    """Whether changed block tracking can be enabled."""
    return record.tracking_supported and record.hardware_version >= FIRST_VERSION_WITH_TRACKING


def _capability(record: VmRecord) -> Any:
    return vim.vm.Capability(
        snapshotOperationsSupported=True,
        multipleSnapshotsSupported=True,
        quiescedSnapshotsSupported=True,
        memorySnapshotsSupported=True,
        diskSharesSupported=True,
        changeTrackingSupported=supports_tracking(record),
    )


def _runtime(record: VmRecord) -> Any:
    return vim.vm.RuntimeInfo(
        host=vim.HostSystem(record.host.moref),
        connectionState=record.connection,
        powerState=record.power_state,
        consolidationNeeded=record.consolidation_needed,
        toolsInstallerMounted=False,
        faultToleranceState="notConfigured",
        recordReplayState="inactive",
        numMksConnections=0,
    )


def _summary(record: VmRecord) -> Any:
    return vim.vm.Summary(
        vm=vim.VirtualMachine(record.moref),
        runtime=_runtime(record),
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
    tools = running and record.tools == "running"
    installed = record.tools != "notInstalled"
    return vim.vm.GuestInfo(
        toolsStatus="toolsOk" if tools else "toolsNotRunning" if installed else "toolsNotInstalled",
        toolsRunningStatus="guestToolsRunning" if tools else "guestToolsNotRunning",
        toolsVersionStatus2="guestToolsUnmanaged" if installed else "guestToolsNotInstalled",
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
    current = vim.vm.Snapshot(record.current) if record.current else None
    return vim.vm.SnapshotInfo(currentSnapshot=current, rootSnapshotList=_snapshot_tree(record, None))


def _snapshot_tree(record: VmRecord, parent: str | None) -> list[Any]:
    return [
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
            childSnapshotList=_snapshot_tree(record, snapshot.moref),
        )
        for snapshot in record.children(parent)
    ]


def _layout(machine: Machine) -> Any:
    record = machine.record
    sizes = {layer.file: (machine.directory / layer.file).stat().st_blocks * 512 for layer in record.layers.values()}
    kinds = dict.fromkeys(sizes, "diskExtent")
    for name, text in vmfiles.small_files(record).items():
        sizes[name], kinds[name] = len(text), name.rpartition(".")[2].replace("vmx", "config")
    files = [
        vim.vm.FileLayoutEx.FileInfo(
            key=key, name=datastore_path(record, name), type=kinds[name], size=size, accessible=True
        )
        for key, (name, size) in enumerate(sizes.items())
    ]
    return vim.vm.FileLayoutEx(file=files, timestamp=datetime.now(UTC))
