"""What all groups of commands have in common: their shape, and how VMs and snapshots are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sendense_lab import tracking
from sendense_lab.errors import NotFoundError
from sendense_lab.machine import Machine
from sendense_lab.records import DiskRecord, KeptDisk, KeptSnapshot, SnapshotDisk, SnapshotRecord, VmRecord

Arguments = dict[str, Any]
Command = Callable[[Arguments], Any]


def vm_json(machine: Machine) -> Arguments:
    """Returns a VM as the commands show it."""
    record = machine.record
    return {
        "moref": record.moref,
        "name": record.name,
        "folder": record.folder or "vm",
        "uuid": record.uuid,
        "instance_uuid": record.instance_uuid,
        "power_state": record.power_state,
        "connection": record.connection,
        "host": record.host.name,
        "hardware_version": record.hardware_version,
        "template": record.template,
        "encrypted": record.encrypted,
        "tools": record.tools,
        "attributes": record.attributes,
        "change_tracking": record.tracking_enabled,
        "change_tracking_supported": record.tracking_supported,
        "consolidation_needed": record.consolidation_needed,
        "snapshots": len(record.snapshots),
        "kept_snapshots": len(record.kept),
        "controllers": [{"bus": found.bus, "sharing": found.sharing} for found in record.controllers],
        "disks": [disk_json(record, disk) for disk in record.disks],
    }


def disk_json(record: VmRecord, disk: DiskRecord) -> Arguments:
    """Returns a disk of a VM as the commands show it."""
    return {
        "disk": index_of(record, disk.uuid),
        "key": disk.key,
        "slot": f"{disk.bus}:{disk.unit}",
        "label": disk.label,
        "uuid": disk.uuid,
        "capacity_bytes": disk.capacity,
        "filesystem": disk.filesystem or "blank",
        "mountpoint": disk.mountpoint,
        "datastore": disk.datastore.name,
        "mode": disk.mode,
        "mapping": disk.mapping,
        "multi_writer": disk.multi_writer,
        "file": f"[{disk.datastore.name}] {record.directory}/{record.layers[disk.top].descriptor}",
        "change_id": tracking.change_id(disk.tracking),
    }


def index_of(record: VmRecord, uuid: str) -> int | None:
    """Returns the index that a disk has now, None when the VM has it no more."""
    return next((index for index, disk in enumerate(record.disks) if disk.uuid == uuid), None)


def snapshot_json(record: VmRecord, snapshot: SnapshotRecord | KeptSnapshot) -> Arguments:
    """Returns an open or kept snapshot as the commands show it."""
    disks: Sequence[SnapshotDisk | KeptDisk] = snapshot.disks
    shown = {
        "moref": snapshot.moref,
        "name": snapshot.name,
        "description": snapshot.description,
        "created": snapshot.created.isoformat(),
        "removed": snapshot.removed.isoformat() if isinstance(snapshot, KeptSnapshot) else None,
        "kept": isinstance(snapshot, KeptSnapshot),
        "disks": [
            {
                "disk": index_of(record, disk.uuid),
                "key": disk.key,
                "uuid": disk.uuid,
                "capacity_bytes": disk.capacity,
                "change_id": disk.change_id,
            }
            for disk in sorted(disks, key=lambda disk: disk.key)
        ],
    }
    if isinstance(snapshot, SnapshotRecord):
        shown |= {"parent": snapshot.parent, "current": snapshot.moref == record.current, "quiesced": snapshot.quiesced}
    return shown


def find_snapshot(record: VmRecord, name: str) -> SnapshotRecord:
    """Returns an open snapshot by its managed object id or its name (the latest of that name).

    Raises:
        NotFoundError: There is none.
    """
    for snapshot in reversed(record.snapshots):
        if name in (snapshot.moref, snapshot.name):
            return snapshot
    raise NotFoundError(f"{record.name} has no open snapshot {name!r}", help="`vm snapshots` shows all.")
