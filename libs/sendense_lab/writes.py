"""Writing into a disk's top layer: bytes of the guest, the outcome of a guest operation, a delta that is merged.

Whatever is written is in the change log before its first byte is on the disk, so a killed server may have tracked
too much, never too little.
"""

from __future__ import annotations

from collections.abc import Iterable

from sendense_lab import kept, layers, tracking
from sendense_lab.areas import Area, intersect, merge, round_out, subtract, total
from sendense_lab.machine import Machine
from sendense_lab.records import DiskRecord, Layer


def write(machine: Machine, disk: DiskRecord, offset: int, length: int, chunks: Iterable[bytes]) -> None:
    """Writes `length` bytes at an offset inside a disk, as a program using the raw device would."""
    with machine.lock:
        written: Area = (offset, offset + length)
        areas = round_out([written], disk.capacity)
        _prepare(machine, disk, areas)
        top = machine.top(disk)
        path = machine.directory / top.file
        if top.parent is not None:
            # A block that is new to the delta holds the rest of its bytes, too.
            edges = subtract(subtract(areas, [written]), top.areas)
            layers.copy_view(machine.directory, machine.record.chain(top.parent), path, edges)
        layers.write(path, offset, chunks)
        _hold(machine, top, areas)


def keep_overlays(machine: Machine, indexes: Iterable[int]) -> None:
    """Brings what a guest operation wrote into its disks' tops; a killed server finishes that at its next start."""
    record = machine.record
    for index in indexes:
        disk = record.disks[index]
        overlay = machine.overlay(disk)
        written, zeroed = overlay.content()
        if written or zeroed:
            noted = tracking.record_changes(disk, (*written, *zeroed))
            record = record.with_disk(noted.model_copy(update={"pending_overlay": overlay.metadata.name}))
    machine.save(record)
    finish_pending(machine)


def finish_pending(machine: Machine) -> None:
    """Brings in overlays whose changes are noted; may be repeated."""
    with machine.lock:
        for disk in machine.record.disks:
            overlay = machine.overlay(disk)
            if disk.pending_overlay:
                written, zeroed = overlay.content()
                top, path = machine.top(disk), machine.directory / disk.top
                areas = round_out((*written, *zeroed), disk.capacity)
                if top.parent is None:
                    kept.save_before_write(machine, top.file, areas)
                layers.copy_areas(overlay.data, path, written)
                for start, end in zeroed:
                    layers.write(path, start, layers.zeros(min(end, disk.capacity) - start))
                _hold(machine, top, areas)
                machine.save(machine.record.with_disk(disk.model_copy(update={"pending_overlay": None})))
            overlay.remove()


def merge_down(machine: Machine, delta: Layer, into: Layer) -> None:
    """Writes what a delta holds into the layer below it; may be repeated."""
    if into.parent is None:
        kept.save_before_write(machine, into.file, delta.areas)
    layers.copy_areas(machine.directory / delta.file, machine.directory / into.file, delta.areas)
    _hold(machine, into, delta.areas)


def _prepare(machine: Machine, disk: DiskRecord, areas: tuple[Area, ...]) -> None:
    """Notes changes, and saves for kept snapshots what they overwrite in a base."""
    top = machine.top(disk)
    if top.parent is None:
        kept.save_before_write(machine, top.file, areas)
    noted = tracking.record_changes(disk, areas)
    if noted != disk:
        machine.save(machine.record.with_disk(noted))


def _hold(machine: Machine, layer: Layer, areas: tuple[Area, ...]) -> None:
    """Notes that a delta now holds these areas."""
    if layer.parent is None or total(intersect(areas, layer.areas)) == total(areas):
        return
    grown = layer.model_copy(update={"areas": merge((*layer.areas, *areas))})
    machine.save(machine.record.with_layers(grown))
