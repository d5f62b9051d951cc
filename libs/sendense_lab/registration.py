"""VMs that come into the inventory, leave it, and come back under another managed object id."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence

from sendense_lab import creation, kept
from sendense_lab.diskspec import DiskSpec
from sendense_lab.errors import InvalidRequestError
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import DATASTORE, VmRecord


def create_vm(
    lab: Lab,
    name: str,
    disks: Sequence[DiskSpec],
    *,
    seed: int,
    small_files: int,
    folder: str = "",
    bios_uuid: str | None = None,
    hardware_version: int = 19,
) -> Machine:
    """Creates a powered-on VM with filled disks.

    Args:
        lab: The lab.
        name: Its name; in one folder there is only one of that name.
        disks: The first with a file system is the root.
        seed: Seed of all content.
        small_files: Files of 1 to 64 KiB over all disks.
        folder: Name of a folder for the VM.
        bios_uuid: As vSphere, the lab lets several VMs have the same; None makes one up.
        hardware_version: 4 to 21; below 7 there is no change tracking.

    Raises:
        InvalidRequestError: The name is taken in that folder, or a disk has no place.
    """
    require_name(name)
    moref = f"vm-{lab.next_id()}"
    directory = _reserve(lab, name, folder)
    try:
        record = VmRecord(
            moref=moref,
            name=name,
            folder=folder,
            directory=directory,
            uuid=bios_uuid or str(uuid.uuid4()),
            instance_uuid=str(uuid.uuid4()),
            hardware_version=hardware_version,
            seed=seed,
            disks=(),
            layers={},
        )
        try:
            for spec in disks:
                record, _ = creation.plan_disk(record, spec, lab.datastore(spec.datastore or DATASTORE.name))
            creation.write_disks(record, record.disks, lab.store, small_files, lab.stopping)
        except BaseException:
            shutil.rmtree(lab.store.datastore / directory)
            raise
        machine = Machine(record, lab.store, lab.notify)
        machine.save(record)
        lab.machines[moref] = machine
    finally:
        lab.creating.discard((name, folder))
    lab.events.add("VmCreatedEvent", record, f"Created virtual machine {name}")
    lab.notify()
    return machine


def require_name(name: str) -> None:
    """Raises unless a VM may have that name.

    Raises:
        InvalidRequestError: It may not.
    """
    if not name or "/" in name or len(name) > 80:
        raise InvalidRequestError("A VM has a name of 1 to 80 characters without `/`")


def _reserve(lab: Lab, name: str, folder: str) -> str:
    """Takes a name in a folder and makes a directory in the datastore for it; returns the directory's name."""
    with lab.lock:
        taken = {(machine.record.name, machine.record.folder) for machine in lab.machines.values()}
        if (name, folder) in taken | lab.creating:
            raise InvalidRequestError(
                f"There is a VM {name!r} in folder {folder or 'vm'!r} already",
                help="Give another name, or another folder with --folder.",
            )
        directory = creation.directory_name(name, {path.name for path in lab.store.datastore.iterdir()})
        (lab.store.datastore / directory).mkdir()
        lab.creating.add((name, folder))
        if folder and folder not in lab.record.folders:
            lab.save(folders={**lab.record.folders, folder: f"group-v{1001 + len(lab.record.folders)}"})
        return directory


def delete_vm(lab: Lab, name: str) -> VmRecord:
    """Removes a VM, its snapshots and whatever was kept of it."""
    machine = lab.find(name)
    lab.busy.stop(machine)
    with machine.lock:
        record = machine.record
        del lab.machines[record.moref]
        lab.store.delete_vm(record.moref)
        shutil.rmtree(machine.directory)
        kept.forget(machine)
    lab.events.add("VmRemovedEvent", record, f"Removed {record.name}")
    lab.notify()
    return record


def rename_vm(lab: Lab, machine: Machine, name: str) -> None:
    """Gives a VM another name; its files keep theirs.

    Raises:
        InvalidRequestError: The name is taken in its folder.
    """
    require_name(name)
    with machine.lock, lab.lock:
        record = machine.record
        others = [other.record for other in lab.machines.values() if other is not machine]
        if any((other.name, other.folder) == (name, record.folder) for other in others):
            raise InvalidRequestError(f"There is a VM {name!r} in folder {record.folder or 'vm'!r} already")
        machine.save(record.model_copy(update={"name": name}))


def register_again(lab: Lab, machine: Machine) -> VmRecord:
    """Takes a VM out of the inventory and in again: other managed object ids, all else as before.

    Its change ids stay good; its former events are not found under the new id.
    """
    with machine.lock:
        old = machine.record
        snapshots = {snapshot.moref: f"snapshot-{lab.next_id()}" for snapshot in old.snapshots}
        record = old.model_copy(
            update={
                "moref": f"vm-{lab.next_id()}",
                "current": snapshots.get(old.current or ""),
                "snapshots": tuple(
                    snapshot.model_copy(
                        update={
                            "moref": snapshots[snapshot.moref],
                            "parent": snapshots.get(snapshot.parent or ""),
                        }
                    )
                    for snapshot in old.snapshots
                ),
            }
        )
        lab.events.add("VmRemovedEvent", old, f"Removed {old.name} from the inventory")
        del lab.machines[old.moref]
        machine.save(record)
        lab.store.delete_vm(old.moref)
        lab.machines[record.moref] = machine
    lab.events.add("VmRegisteredEvent", record, f"Registered {record.name}")
    lab.notify()
    return record
