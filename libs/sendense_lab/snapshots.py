"""Creating and removing snapshots of all disks of a VM at once, and merging what removal leaves."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

from sendense_lab import kept, layers, tracking, writes
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.machine import Machine
from sendense_lab.records import Device, DiskRecord, Layer, SnapshotDisk, SnapshotRecord, VmRecord

MAX_DEPTH = 32
"""VMware's limit of snapshots in one chain."""


def create(
    machine: Machine, moref: str, name: str, description: str, *, quiesce: bool, without_change_id: frozenset[str]
) -> SnapshotRecord:
    """Freezes every disk of a VM at one moment; the guest's writes go to new deltas from here on.

    Independent disks and physical raw device mappings are left out: they go on as they are.

    Args:
        machine: The VM.
        moref: Managed object id for the new snapshot.
        name: As shown.
        description: As shown.
        quiesce: Recorded when the guest's tools run; the lab's guests are always unmounted cleanly between operations.
        without_change_id: uuids of disks whose change id is left out.

    Returns:
        The snapshot.

    Raises:
        InvalidRequestError: The chain is as deep as VMware allows.
    """
    with machine.lock:
        record = machine.record
        if len(record.line()) >= MAX_DEPTH:
            raise InvalidRequestError(f"{record.name} has {MAX_DEPTH} snapshots in a line already")
        frozen: list[SnapshotDisk] = []
        disks: list[DiskRecord] = []
        deltas: list[Layer] = []
        for disk in record.disks:
            if not disk.in_snapshots:
                frozen.append(SnapshotDisk.of(disk, None, None))
                disks.append(disk)
                continue
            raised = tracking.next_sequence(disk)
            change_id = None if disk.uuid in without_change_id else tracking.change_id(raised.tracking)
            frozen.append(SnapshotDisk.of(disk, change_id, raised.tracking))
            delta = next_delta(record, disk)
            layers.create(machine.directory / delta.file, disk.capacity)
            deltas.append(delta)
            raised = raised.model_copy(update={"top": delta.file})
            # The stun is where tracking that was asked for begins: this snapshot itself has no change id yet.
            disks.append(tracking.follow_setting(raised, enabled=record.tracks(raised)))
        running = record.power_state == "poweredOn"
        snapshot = SnapshotRecord(
            moref=moref,
            number=record.snapshots_made + 1,
            name=name,
            description=description,
            created=datetime.now(UTC),
            parent=record.current,
            quiesced=quiesce and running and record.tools == "running",
            power_state="poweredOff",  # no memory in the lab's snapshots
            tracking_enabled=record.tracking_enabled,
            controllers=record.controllers,
            disks=tuple(frozen),
        )
        update = {
            "disks": tuple(disks),
            "snapshots": (*record.snapshots, snapshot),
            "current": moref,
            "snapshots_made": snapshot.number,
        }
        machine.save(record.with_layers(*deltas).model_copy(update=update))
        return snapshot


def next_delta(record: VmRecord, disk: Device) -> Layer:
    """Returns a new, empty delta above what a disk shows, with the first name that is free."""
    names = (f"{disk.base}-{number:06d}" for number in itertools.count(1))
    name = next(name for name in names if f"{name}-delta.vmdk" not in record.layers)
    return Layer(file=f"{name}-delta.vmdk", descriptor=f"{name}.vmdk", parent=disk.top)


def remove(machine: Machine, moref: str, *, children: bool, merge: bool, keep: int) -> None:
    """Removes a snapshot and merges its delta.

    Args:
        machine: The VM.
        moref: The snapshot.
        children: Also remove all that were made on it.
        merge: Merge the files now; else the VM reports consolidationNeeded.
        keep: How many contents of removed snapshots are kept for later comparison; 0 for none.

    Raises:
        NotFoundError: No such open snapshot.
    """
    with machine.lock:
        removed = machine.record.snapshot(moref)
        if removed is None:
            raise NotFoundError(f"{machine.record.name} has no snapshot {moref}")
        going = [removed, *(_descendants(machine.record, moref) if children else [])]
        if keep:
            for snapshot in going:
                kept.keep(machine, snapshot, keep)
        record = machine.record
        gone = {snapshot.moref for snapshot in going}
        left = tuple(
            snapshot.model_copy(update={"parent": removed.parent}) if snapshot.parent == moref else snapshot
            for snapshot in record.snapshots
            if snapshot.moref not in gone
        )
        # A stun, too.
        disks = tuple(tracking.follow_setting(disk, enabled=record.tracks(disk)) for disk in record.disks)
        current = removed.parent if record.current in gone else record.current
        machine.save(record.model_copy(update={"snapshots": left, "disks": disks, "current": current}))
        if merge:
            consolidate(machine)


def _descendants(record: VmRecord, moref: str) -> list[SnapshotRecord]:
    found: list[SnapshotRecord] = []
    for child in record.children(moref):
        found += [child, *_descendants(record, child.moref)]
    return found


def consolidate(machine: Machine) -> None:
    """Merges every file that no disk and no snapshot shows into its child's place; safe to repeat after a crash.

    One with several children stays: it is part of each of them.
    """
    with machine.lock:
        while _merge_one(machine):
            pass


def _merge_one(machine: Machine) -> bool:
    record = machine.record
    in_use = record.files_in_use
    for layer in record.layers.values():
        if layer.file in in_use:
            continue
        children = [child for child in record.layers.values() if child.parent == layer.file]
        if not children:
            discard(machine, layer)
            return True
        if len(children) == 1:
            writes.merge_down(machine, children[0], layer)
            _take_place(machine, children[0], layer)
            return True
    return False


def discard(machine: Machine, layer: Layer) -> None:
    """Removes a file that nothing reads any more, except kept contents, which are copied first."""
    kept.make_whole(machine, layer.file)
    machine.save(machine.record.with_layers(without=[layer.file]))
    (machine.directory / layer.file).unlink(missing_ok=True)


def _take_place(machine: Machine, merged: Layer, into: Layer) -> None:
    """Lets everything that showed or stood on a merged delta use the layer that took it in."""
    record = machine.record
    update = {"top": into.file}
    disks = tuple(disk.model_copy(update=update) if disk.top == merged.file else disk for disk in record.disks)
    snapshots = tuple(
        snapshot.model_copy(
            update={
                "disks": tuple(
                    disk.model_copy(update=update) if disk.top == merged.file else disk for disk in snapshot.disks
                )
            }
        )
        for snapshot in record.snapshots
    )
    moved = [
        layer.model_copy(update={"parent": into.file})
        for layer in record.layers.values()
        if layer.parent == merged.file
    ]
    record = record.model_copy(update={"disks": disks, "snapshots": snapshots})
    machine.save(record.with_layers(*moved, without=[merged.file]))
    (machine.directory / merged.file).unlink(missing_ok=True)
