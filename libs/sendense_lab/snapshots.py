"""Creating and removing snapshots of all disks of a VM at once, and consolidating what removal leaves."""

from __future__ import annotations

from datetime import UTC, datetime

from sendense_lab import layers, tracking
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.machine import Machine
from sendense_lab.records import (
    DiskRecord,
    KeptDisk,
    KeptSnapshot,
    Layer,
    SnapshotDisk,
    SnapshotRecord,
    VmRecord,
)

MAX_DEPTH = 32
"""VMware's limit of snapshots in one chain."""


def create(machine: Machine, moref: str, name: str, description: str, *, quiesce: bool) -> SnapshotRecord:
    """Freezes every disk of a VM at one moment; the guest's writes go to new deltas from here on.

    Args:
        machine: The VM.
        moref: Managed object id for the new snapshot.
        name: As shown.
        description: As shown.
        quiesce: Recorded; the lab's guests are always unmounted cleanly between operations.

    Returns:
        The snapshot.

    Raises:
        InvalidRequestError: The chain is as deep as VMware allows.
    """
    with machine.lock:
        record = machine.record
        if len(record.snapshots) >= MAX_DEPTH:
            raise InvalidRequestError(f"{record.name} has {MAX_DEPTH} snapshots already")
        frozen: dict[int, SnapshotDisk] = {}
        disks: list[DiskRecord] = []
        for disk in record.disks:
            raised = tracking.next_sequence(disk)
            frozen[disk.key] = SnapshotDisk(
                layer=disk.top.file, change_id=tracking.change_id(raised.tracking), capacity=disk.capacity
            )
            number = disk.deltas_made + 1
            delta = Layer(
                file=f"{disk.base}-{number:06d}-delta.vmdk",
                format="qcow2",
                descriptor=f"{disk.base}-{number:06d}.vmdk",
            )
            layers.create_delta(machine.directory, delta.file, disk.top, disk.capacity)
            raised = raised.model_copy(update={"chain": (*disk.chain, delta), "deltas_made": number})
            # The stun is where tracking that was asked for begins: this snapshot itself has no change id yet.
            disks.append(tracking.follow_setting(raised, enabled=record.tracking_enabled))
        snapshot = SnapshotRecord(
            moref=moref,
            number=record.snapshots_made + 1,
            name=name,
            description=description,
            created=datetime.now(UTC),
            quiesced=quiesce and record.power_state == "poweredOn",
            power_state="poweredOff",  # no memory in the lab's snapshots
            disks=frozen,
        )
        machine.save(
            record.model_copy(
                update={
                    "disks": tuple(disks),
                    "snapshots": (*record.snapshots, snapshot),
                    "snapshots_made": snapshot.number,
                }
            )
        )
        return snapshot


def remove(machine: Machine, moref: str, *, children: bool, consolidate_disks: bool, keep: bool) -> None:
    """Removes a snapshot and merges its delta.

    Args:
        machine: The VM.
        moref: The snapshot.
        children: Also remove all later ones.
        consolidate_disks: Merge the files now; else the VM reports consolidationNeeded.
        keep: Keep the disks' content for later comparison.

    Raises:
        NotFoundError: No such open snapshot.
    """
    with machine.lock:
        record = machine.record
        position = next((n for n, found in enumerate(record.snapshots) if found.moref == moref), None)
        if position is None:
            raise NotFoundError(f"{record.name} has no snapshot {moref}")
        last = len(record.snapshots) if children else position + 1
        kept = record.kept
        if keep:
            kept = (*kept, *(_keep(machine, gone) for gone in record.snapshots[position:last]))
        machine.save(
            record.model_copy(
                update={
                    "snapshots": record.snapshots[:position] + record.snapshots[last:],
                    "disks": tuple(
                        tracking.follow_setting(disk, enabled=record.tracking_enabled) for disk in record.disks
                    ),
                    "kept": kept,
                }
            )
        )
        if consolidate_disks:
            consolidate(machine)


def consolidate(machine: Machine) -> None:
    """Merges every delta below which no snapshot needs the state; safe to repeat after a crash."""
    with machine.lock:
        for key in [disk.key for disk in machine.record.disks]:
            while _merge_one(machine, key):
                pass


def _merge_one(machine: Machine, key: int) -> bool:
    record = machine.record
    disk = record.disk(key)
    if disk is None:
        return False
    needed = {snapshot.disks[key].layer for snapshot in record.snapshots if key in snapshot.disks}
    for index, layer in enumerate(disk.chain[:-1]):
        if layer.file in needed:
            continue
        delta = disk.chain[index + 1]
        machine.commit_into(disk, delta.file, layer)
        if index + 2 < len(disk.chain):
            layers.rebase(machine.directory, disk.chain[index + 2].file, layer)
        shorter = disk.model_copy(update={"chain": disk.chain[: index + 1] + disk.chain[index + 2 :]})
        machine.save(_moved(machine.record, key, delta.file, layer.file).with_disk(shorter))
        (machine.directory / delta.file).unlink()
        return True
    return False


def _moved(record: VmRecord, key: int, merged: str, into: str) -> VmRecord:
    """Lets the snapshots that froze the merged delta point at the layer that took it in."""
    snapshots = []
    for snapshot in record.snapshots:
        frozen = snapshot.disks.get(key)
        if frozen is not None and frozen.layer == merged:
            moved = frozen.model_copy(update={"layer": into})
            snapshots.append(snapshot.model_copy(update={"disks": snapshot.disks | {key: moved}}))
        else:
            snapshots.append(snapshot)
    return record.model_copy(update={"snapshots": tuple(snapshots)})


def _keep(machine: Machine, snapshot: SnapshotRecord) -> KeptSnapshot:
    """Notes a snapshot's content before it goes.

    The usual one froze the base itself: then it is enough to save whatever will be overwritten there from now
    on. Any other is copied whole.
    """
    disks: dict[int, KeptDisk] = {}
    for disk in machine.record.disks:
        frozen = snapshot.disks.get(disk.key)
        if frozen is None:
            continue
        layer = next(layer for layer in disk.chain if layer.file == frozen.layer)
        file = f"{machine.record.moref}-{snapshot.moref}-{disk.key}.raw"
        undo = layer.format == "raw"
        if not undo:
            layers.export_raw(machine.directory, layer, machine.store.kept / file)
        disks[disk.key] = KeptDisk(file=file, capacity=disk.capacity, change_id=frozen.change_id, undo=undo)
    return KeptSnapshot(
        moref=snapshot.moref,
        name=snapshot.name,
        description=snapshot.description,
        created=snapshot.created,
        removed=datetime.now(UTC),
        disks=disks,
    )
