"""The content of removed snapshots, kept so that a backup made from one can be compared with it afterwards.

The usual snapshot froze the base itself. Then it is enough to save what is overwritten there from its removal on;
any other snapshot's disk is copied whole.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sendense_lab import layers
from sendense_lab.areas import Area, merge, subtract
from sendense_lab.disknames import DiskName
from sendense_lab.machine import Machine
from sendense_lab.records import KeptDisk, KeptSnapshot, SnapshotRecord


def keep(machine: Machine, snapshot: SnapshotRecord, limit: int) -> None:
    """Notes a snapshot's content before it goes.

    Args:
        machine: The VM.
        snapshot: Still open.
        limit: Most contents kept of one VM; the oldest goes.
    """
    record = machine.record
    disks = []
    for disk in snapshot.disks:
        if not disk.in_snapshots:
            continue
        file = f"{record.directory}-{snapshot.moref}-{disk.key}.raw"
        whole = record.layers[disk.top].parent is not None
        if whole:
            layers.export(machine.directory, record.chain(disk.top), machine.store.kept / file)
        disks.append(
            KeptDisk(
                key=disk.key,
                uuid=disk.uuid,
                file=file,
                capacity=disk.capacity,
                change_id=disk.change_id,
                base=None if whole else disk.top,
            )
        )
    fresh = KeptSnapshot(
        moref=snapshot.moref,
        name=snapshot.name,
        description=snapshot.description,
        created=snapshot.created,
        removed=datetime.now(UTC),
        disks=tuple(disks),
    )
    everything = (*record.kept, fresh)
    forgotten, kept = everything[:-limit], everything[-limit:]
    machine.save(record.model_copy(update={"kept": kept}))
    for old in forgotten:  # nothing reads through the oldest
        _unlink(machine, old)


def save_before_write(machine: Machine, base: str, areas: tuple[Area, ...]) -> None:
    """Saves what is about to be overwritten in a base for the newest kept content of it; older ones read through."""
    for snapshot in reversed(machine.record.kept):
        disk = next((disk for disk in snapshot.disks if disk.base == base), None)
        if disk is None:
            continue
        missing = subtract(areas, disk.saved)
        if missing:
            layers.copy_areas(machine.directory / base, machine.store.kept / disk.file, missing)
            _replace(machine, snapshot, disk.model_copy(update={"saved": merge((*disk.saved, *missing))}))
        return


def export(machine: Machine, snapshot: KeptSnapshot, disk: KeptDisk, output: Path) -> None:
    """Writes a kept disk's content to a sparse raw file."""
    with machine.lock:
        if disk.base is None:
            layers.copy_sparse(machine.store.kept / disk.file, output)
            return
        layers.copy_sparse(machine.directory / disk.base, output)
        position = next(n for n, found in enumerate(machine.record.kept) if found.moref == snapshot.moref)
        # Newest first: each goes one step further back.
        for later in reversed(machine.record.kept[position:]):
            for step in later.disks:
                if step.base == disk.base and step.saved:
                    layers.copy_areas(machine.store.kept / step.file, output, step.saved)
        with output.open("r+b") as file:  # the disk may have grown since
            file.truncate(disk.capacity)


def make_whole(machine: Machine, base: str) -> None:
    """Copies all contents that read through a base, before the base goes."""
    waiting = [(kept, disk) for kept in machine.record.kept for disk in kept.disks if disk.base == base]
    for kept, disk in waiting:  # all, before the first is replaced: they read through one another
        export(machine, kept, disk, _partial(machine, disk))
    for kept, disk in waiting:
        _partial(machine, disk).replace(machine.store.kept / disk.file)
        _replace(machine, kept, disk.model_copy(update={"base": None, "saved": ()}))


def find(machine: Machine, name: str, disk: DiskName) -> tuple[KeptSnapshot, KeptDisk] | None:
    """Returns the latest kept snapshot of that id or name with one of its disks, None when there is none."""
    for kept in reversed(machine.record.kept):
        if name in (kept.moref, kept.name):
            found = machine.pick(disk, kept.disks)
            if found is not None:
                return kept, found
    return None


def forget(machine: Machine) -> None:
    """Removes all kept contents of a VM."""
    for snapshot in machine.record.kept:
        _unlink(machine, snapshot)


def _partial(machine: Machine, disk: KeptDisk) -> Path:
    return machine.store.kept / f"{disk.file}.partial"


def _unlink(machine: Machine, snapshot: KeptSnapshot) -> None:
    for disk in snapshot.disks:
        (machine.store.kept / disk.file).unlink(missing_ok=True)


def _replace(machine: Machine, snapshot: KeptSnapshot, disk: KeptDisk) -> None:
    record = machine.record
    kept = tuple(
        found.model_copy(update={"disks": tuple(disk if old.key == disk.key else old for old in found.disks)})
        if found.moref == snapshot.moref
        else found
        for found in record.kept
    )
    machine.save(record.model_copy(update={"kept": kept}))
