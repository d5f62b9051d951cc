"""Changing a VM's hardware: disks added, removed, made again, moved, grown; and what else of a VM can be set."""

from __future__ import annotations

import threading
from typing import Literal

from sendense_lab import creation, guest, reverting, tracking
from sendense_lab.disknames import DiskName
from sendense_lab.diskspec import DiskSpec, Slot
from sendense_lab.errors import InvalidRequestError
from sendense_lab.machine import Machine
from sendense_lab.records import DATASTORE, BusSharing, Controller, DiskRecord, Place, VmRecord

Settable = dict[str, int | bool | str | Place | dict[str, str]]
"""Values of `VmRecord` by field name, as `configure` takes them."""


def add_disk(
    machine: Machine,
    spec: DiskSpec,
    datastore: Place = DATASTORE,
    *,
    small_files: int,
    stopping: threading.Event,
) -> DiskRecord:
    """Adds a disk; one with a file system is written into the running guest's fstab.

    Raises:
        InvalidRequestError: The slot is taken or the controller full.
    """
    with machine.lock:
        record, disk = creation.plan_disk(machine.record, spec, datastore)
        creation.write_disks(record, [disk], machine.store, small_files, stopping)
        machine.save(stunned(record))  # adding it is a stun: a tracked VM's disk is tracked from its first byte
        if disk.filesystem and disk.mountpoint != "/" and record.power_state == "poweredOn":
            guest.add_to_fstab(machine, disk)
        return disk


def remove_disk(machine: Machine, name: DiskName) -> DiskRecord:
    """Removes a disk and destroys its files, but for those that a snapshot needs.

    Raises:
        NotFoundError: There is no such disk.
    """
    with machine.lock:
        disk = machine.disk_at(name)
        left = tuple(other for other in machine.record.disks if other.key != disk.key)
        machine.save(machine.record.model_copy(update={"disks": left}))
        reverting.discard_unused(machine)
        return disk


def recreate_disk(machine: Machine, name: DiskName, *, capacity: int | None, stopping: threading.Event) -> DiskRecord:
    """Puts a blank disk with another uuid into the slot of one that is destroyed; the place in the list stays.

    Without snapshots it even has the file name of the old one.

    Raises:
        NotFoundError: There is no such disk.
    """
    with machine.lock:
        position = machine.record.disks.index(machine.disk_at(name))
        old = remove_disk(machine, name)
        size = old.capacity if capacity is None else capacity
        spec = DiskSpec(size, None, old.bus, old.unit, old.mode, old.mapping, old.multi_writer)
        disk = add_disk(machine, spec, old.datastore, small_files=0, stopping=stopping)
        move_disk(machine, disk.key, position=position)
        return disk


def move_disk(machine: Machine, name: DiskName, *, slot: Slot | None = None, position: int | None = None) -> DiskRecord:
    """Moves a disk to another slot, which changes its device key, or to another place in the VM's list of disks.

    Content, uuid and tracking stay. A disk that is in the slot takes the other's place.

    Args:
        machine: The VM.
        name: The disk.
        slot: Where it goes.
        position: Its new index.

    Raises:
        NotFoundError: There is no such disk.
        InvalidRequestError: There is no such position.
    """
    with machine.lock:
        record = machine.record
        disk = machine.disk_at(name)
        disks = list(record.disks)
        controllers = record.controllers
        if slot is not None:
            other = record.disk(slot.key)
            moves = {disk.key: slot} | ({other.key: Slot(disk.bus, disk.unit)} if other else {})
            disks = [_in_slot(found, moves[found.key]) if found.key in moves else found for found in disks]
            if slot.bus not in {controller.bus for controller in controllers}:
                controllers = (*controllers, Controller(bus=slot.bus))
        moved = next(found for found in disks if found.uuid == disk.uuid)
        if position is not None:
            if not 0 <= position < len(disks):
                raise InvalidRequestError(f"{record.name} has {len(disks)} disks, there is no position {position}")
            disks.remove(moved)
            disks.insert(position, moved)
        machine.save(record.model_copy(update={"disks": tuple(disks), "controllers": controllers}))
        return moved


def resize_disk(machine: Machine, name: DiskName, capacity: int, *, reset_tracking: bool) -> DiskRecord:
    """Grows a disk; the new room reads as zeros and no file system is told.

    Args:
        machine: The VM.
        name: The disk.
        capacity: Its new size, bytes.
        reset_tracking: Begin change tracking anew; else the change ids stay good, as they wrongly did in some releases.

    Raises:
        NotFoundError: There is no such disk.
        InvalidRequestError: It would shrink, or the VM has snapshots.
    """
    with machine.lock:
        disk = machine.disk_at(name)
        if machine.record.snapshots:
            raise InvalidRequestError(
                f"{machine.record.name} has snapshots: its disks cannot grow", help="Remove the snapshots first."
            )
        if capacity <= disk.capacity:
            raise InvalidRequestError(f"{disk.label} has {disk.capacity} bytes: it can only grow")
        for layer in machine.record.chain(disk.top):
            with (machine.directory / layer.file).open("r+b") as file:
                file.truncate(capacity)
        grown = disk.model_copy(update={"capacity": capacity})
        if reset_tracking:
            grown = tracking.reset(grown)
        machine.save(machine.record.with_disk(grown))
        return grown


def reset_tracking(machine: Machine, name: DiskName | None) -> tuple[DiskRecord, ...]:
    """Begins the tracking of a disk, or of all, anew; returns the disks whose tracking it was."""
    with machine.lock:
        chosen = machine.record.disks if name is None else (machine.disk_at(name),)
        for disk in chosen:
            machine.save(machine.record.with_disk(tracking.reset(disk)))
        return tuple(disk for disk in chosen if disk.tracking)


def configure(machine: Machine, changes: Settable) -> None:
    """Changes settings of a VM.

    Args:
        machine: The VM.
        changes: `hardware_version`, `tracking_supported`, `tools`, `connection`, `host`, `template`, `encrypted`,
            `uuid`, `attributes`, by the names of `VmRecord`.

    Raises:
        InvalidRequestError: A template would be running.
    """
    with machine.lock:
        record = machine.record
        if changes.get("template"):
            if record.snapshots:
                raise InvalidRequestError(f"{record.name} has snapshots: it cannot be a template")
            changes = {**changes, "power_state": "poweredOff"}
        machine.save(VmRecord.model_validate(record.model_dump() | changes))


def set_power(machine: Machine, state: Literal["poweredOn", "poweredOff"]) -> None:
    """Switches a VM on or off, which is a stun as far as change tracking goes.

    Raises:
        InvalidRequestError: A template cannot run.
    """
    with machine.lock:
        if state == "poweredOn" and machine.record.template:
            raise InvalidRequestError(f"{machine.record.name} is a template and cannot run")
        machine.save(stunned(machine.record.model_copy(update={"power_state": state})))


def set_tracking(machine: Machine, enabled: bool) -> None:
    """Asks for change tracking or gives it up: at the next stun of a running VM, at once of one that is off."""
    with machine.lock:
        record = machine.record.model_copy(update={"tracking_enabled": enabled})
        machine.save(record if record.power_state == "poweredOn" else stunned(record))


def share_bus(machine: Machine, bus: int, sharing: BusSharing) -> None:
    """Makes a SCSI controller one whose bus is shared with other VMs, or its own again; a missing one is added."""
    with machine.lock:
        others = tuple(found for found in machine.record.controllers if found.bus != bus)
        controllers = sorted((*others, Controller(bus=bus, sharing=sharing)), key=lambda controller: controller.bus)
        machine.save(machine.record.model_copy(update={"controllers": tuple(controllers)}))


def stunned(record: VmRecord) -> VmRecord:
    """Lets the disks follow the tracking setting, as at every stun or power cycle."""
    disks = tuple(tracking.follow_setting(disk, enabled=record.tracks(disk)) for disk in record.disks)
    return record.model_copy(update={"disks": disks})


def _in_slot(disk: DiskRecord, slot: Slot) -> DiskRecord:
    return disk.model_copy(update={"key": slot.key, "bus": slot.bus, "unit": slot.unit})
