"""Taking a VM back to a snapshot, with its hardware, its disks' content, and the trap in their change tracking."""

from __future__ import annotations

from sendense_lab import layers, snapshots, tracking
from sendense_lab.errors import NotFoundError
from sendense_lab.machine import Machine
from sendense_lab.records import Device, DiskRecord, Layer, SnapshotDisk, SnapshotRecord, Tracking


def revert(machine: Machine, moref: str) -> SnapshotRecord:
    """Gives up what the VM is now and goes on from a snapshot, powered off (the lab's snapshots hold no memory).

    Disks that the snapshot left out keep their content. Change tracking goes on with the snapshot's log, under the
    same uuid and a higher sequence: a change id from what was given up can still be asked for and gets an answer
    without the blocks that the revert brought back. That is how vSphere has been since 6.5.

    Returns:
        The snapshot.

    Raises:
        NotFoundError: No such open snapshot.
    """
    with machine.lock:
        record = machine.record
        snapshot = record.snapshot(moref)
        if snapshot is None:
            raise NotFoundError(f"{record.name} has no snapshot {moref}")
        hardware = {"tracking_enabled": snapshot.tracking_enabled, "controllers": snapshot.controllers}
        record = record.model_copy(update=hardware)
        disks: list[DiskRecord] = []
        deltas: list[Layer] = []
        for frozen in snapshot.disks:
            now = record.disk_like(frozen)
            if not frozen.in_snapshots:
                if now is not None:
                    disks.append(_back(frozen, now.top, now))
                continue  # its file went when it was removed
            delta = snapshots.next_delta(record, frozen)
            layers.create(machine.directory / delta.file, frozen.capacity)
            deltas.append(delta)
            disk = _back(frozen, delta.file, now).model_copy(update={"tracking": _tracking(now, frozen)})
            disks.append(tracking.follow_setting(disk, enabled=record.tracks(disk)))
        update = {
            "disks": tuple(disks),
            "current": moref,
            "power_state": snapshot.power_state,
        }
        machine.save(record.with_layers(*deltas).model_copy(update=update))
        discard_unused(machine)
        return snapshot


def discard_unused(machine: Machine) -> None:
    """Removes the files that no disk and no snapshot shows or stands on."""
    while True:
        record = machine.record
        needed = record.files_in_use | {layer.parent for layer in record.layers.values()}
        unused = next((layer for layer in record.layers.values() if layer.file not in needed), None)
        if unused is None:
            return
        snapshots.discard(machine, unused)


def _back(frozen: SnapshotDisk, top: str, now: DiskRecord | None) -> DiskRecord:
    """Returns a snapshot's disk as a disk of the VM, in the slot it had."""
    fields = {name: getattr(frozen, name) for name in Device.model_fields} | {"top": top}
    return DiskRecord(**fields, tracking=now.tracking if now else None)


def _tracking(now: DiskRecord | None, frozen: SnapshotDisk) -> Tracking | None:
    """Returns a disk's tracking after a revert; None lets it begin anew, where it did so since the snapshot."""
    if now is None or now.tracking is None or frozen.tracking is None or now.tracking.uuid != frozen.tracking.uuid:
        return None
    return frozen.tracking.model_copy(update={"sequence": now.tracking.sequence + 1})
