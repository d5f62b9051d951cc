"""Commands about virtual machines: the inventory, their hardware, their snapshots, their power."""

from __future__ import annotations

from typing import Any

from sendense_lab import diskspec, hardware, registration, snapshots
from sendense_lab.commanded import Arguments, Command, disk_json, find_snapshot, snapshot_json, vm_json
from sendense_lab.errors import InvalidRequestError
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import DATASTORE, KeptSnapshot, SnapshotRecord

SETTABLE = {
    "hardware_version": int,
    "tracking_supported": bool,
    "tools": str,
    "connection": str,
    "template": bool,
    "encrypted": bool,
    "uuid": str,
}
"""What `vm/set` takes besides the name: field of the record to its type."""


class VmCommands:
    """`vm/…`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def commands(self) -> dict[str, Command]:
        """Returns the commands by their names."""
        return {
            "vm/list": self.all,
            "vm/show": self.show,
            "vm/create": self.create,
            "vm/delete": self.delete,
            "vm/set": self.configure,
            "vm/power": self.power,
            "vm/register-again": self.register_again,
            "vm/add-disk": self.add_disk,
            "vm/remove-disk": self.remove_disk,
            "vm/recreate-disk": self.recreate_disk,
            "vm/move-disk": self.move_disk,
            "vm/share-bus": self.share_bus,
            "vm/snapshots": self.snapshots,
            "vm/snapshot-create": self.snapshot_create,
            "vm/snapshot-remove": self.snapshot_remove,
            "vm/snapshot-revert": self.snapshot_revert,
            "vm/consolidate": self.consolidate,
            "vm/events": self.events,
        }

    def _reconfigured(self, machine: Machine, what: str) -> None:
        self._lab.events.add("VmReconfiguredEvent", machine.record, f"Reconfigured {machine.record.name}: {what}")

    def all(self, _: Arguments) -> Any:
        """All VMs."""
        return {"vms": [vm_json(machine) for machine in list(self._lab.machines.values())]}

    def show(self, arguments: Arguments) -> Any:
        """One VM."""
        return vm_json(self._lab.find(arguments["vm"]))

    def create(self, arguments: Arguments) -> Any:
        """Creates a VM."""
        texts = arguments["disks"]
        if not texts and not arguments.get("diskless"):
            raise InvalidRequestError("A VM has at least one disk", help="Or say that it shall have none.")
        machine = registration.create_vm(
            self._lab,
            arguments["name"],
            [diskspec.parse_disk(text) for text in texts],
            seed=int(arguments.get("seed", 1)),
            small_files=int(arguments.get("small_files", 3000)),
            folder=arguments.get("folder") or "",
            bios_uuid=arguments.get("bios_uuid"),
            hardware_version=int(arguments.get("hardware_version", 19)),
        )
        return vm_json(machine)

    def delete(self, arguments: Arguments) -> Any:
        """Deletes a VM."""
        record = registration.delete_vm(self._lab, arguments["vm"])
        return {"moref": record.moref, "name": record.name}

    def configure(self, arguments: Arguments) -> Any:
        """Changes settings of a VM; those not given stay."""
        machine = self._lab.find(arguments["vm"])
        given = {field: value for field, value in arguments.items() if field in SETTABLE and value is not None}
        changes: hardware.Settable = {field: SETTABLE[field](value) for field, value in given.items()}
        if arguments.get("host"):
            changes["host"] = self._lab.host(arguments["host"])
        if arguments.get("attributes"):
            changes["attributes"] = self._attributes(machine, arguments["attributes"])
        if arguments.get("name"):
            registration.rename_vm(self._lab, machine, arguments["name"])
        if arguments.get("change_tracking") is not None:
            hardware.set_tracking(machine, bool(arguments["change_tracking"]))
        hardware.configure(machine, changes)
        self._reconfigured(machine, "settings")
        return vm_json(machine)

    def _attributes(self, machine: Machine, given: dict[str, str]) -> dict[str, str]:
        """Returns a VM's custom attributes with those given; an empty value takes one away."""
        for name in given:
            self._lab.attribute_key(name)
        together = machine.record.attributes | given
        return {name: value for name, value in together.items() if value}

    def power(self, arguments: Arguments) -> Any:
        """Switches a VM on or off; nothing happens when it is so already."""
        machine = self._lab.find(arguments["vm"])
        self._lab.set_power(machine, "poweredOn" if arguments["on"] else "poweredOff")
        return vm_json(machine)

    def register_again(self, arguments: Arguments) -> Any:
        """Gives a VM and its snapshots other managed object ids."""
        machine = self._lab.find(arguments["vm"])
        before = machine.record.moref
        registration.register_again(self._lab, machine)
        return vm_json(machine) | {"former_moref": before}

    def add_disk(self, arguments: Arguments) -> Any:
        """Adds a disk."""
        machine = self._lab.find(arguments["vm"])
        spec = diskspec.parse_disk(arguments["disk"])
        disk = hardware.add_disk(
            machine,
            spec,
            self._lab.datastore(spec.datastore or DATASTORE.name),
            small_files=int(arguments.get("small_files", 0)),
            stopping=self._lab.stopping,
        )
        self._reconfigured(machine, f"{disk.label} added")
        return disk_json(machine.record, disk)

    def remove_disk(self, arguments: Arguments) -> Any:
        """Removes a disk."""
        machine = self._lab.find(arguments["vm"])
        disk = hardware.remove_disk(machine, arguments["disk"])
        self._reconfigured(machine, f"{disk.label} removed")
        return {"vm": machine.record.moref, "key": disk.key, "uuid": disk.uuid, "label": disk.label}

    def recreate_disk(self, arguments: Arguments) -> Any:
        """Puts a new, blank disk in the place of one."""
        machine = self._lab.find(arguments["vm"])
        size = arguments.get("size")
        disk = hardware.recreate_disk(
            machine,
            arguments["disk"],
            capacity=diskspec.parse_size(size) if size else None,
            stopping=self._lab.stopping,
        )
        self._reconfigured(machine, f"{disk.label} made again")
        return disk_json(machine.record, disk)

    def move_disk(self, arguments: Arguments) -> Any:
        """Moves a disk to another slot, or to another place in the list."""
        machine = self._lab.find(arguments["vm"])
        to, position = arguments.get("to"), arguments.get("position")
        disk = hardware.move_disk(
            machine,
            arguments["disk"],
            slot=diskspec.parse_slot(to) if to else None,
            position=None if position is None else int(position),
        )
        self._reconfigured(machine, f"{disk.label} moved")
        return disk_json(machine.record, disk)

    def share_bus(self, arguments: Arguments) -> Any:
        """Makes a SCSI controller a shared one, or its VM's own again."""
        machine = self._lab.find(arguments["vm"])
        sharing = {"none": "noSharing", "virtual": "virtualSharing", "physical": "physicalSharing"}
        slot = diskspec.parse_slot(f"{int(arguments['bus'])}:0")
        hardware.share_bus(machine, slot.bus, sharing[arguments["sharing"]])  # type: ignore[arg-type]
        self._reconfigured(machine, "bus sharing")
        return vm_json(machine)

    def snapshots(self, arguments: Arguments) -> Any:
        """Open and kept snapshots of a VM, oldest first."""
        record = self._lab.find(arguments["vm"]).record
        everything: list[SnapshotRecord | KeptSnapshot] = [*record.kept, *record.snapshots]
        everything.sort(key=lambda snapshot: int(snapshot.moref.partition("-")[2]))
        return {"vm": record.moref, "snapshots": [snapshot_json(record, snapshot) for snapshot in everything]}

    def snapshot_create(self, arguments: Arguments) -> Any:
        """Makes a snapshot, as a user of the vSphere client would."""
        machine = self._lab.find(arguments["vm"])
        snapshot = self._lab.create_snapshot(
            machine, arguments["name"], arguments.get("description") or "", quiesce=bool(arguments.get("quiesce"))
        )
        return snapshot_json(machine.record, snapshot)

    def snapshot_remove(self, arguments: Arguments) -> Any:
        """Removes a snapshot, or all."""
        machine = self._lab.find(arguments["vm"])
        name, children = arguments.get("snapshot"), bool(arguments.get("children"))
        going = [find_snapshot(machine.record, name)] if name else list(machine.record.children(None))
        for snapshot in going:
            self._lab.remove_snapshot(machine, snapshot.moref, children=children or not name, merge=True)
        return {"vm": machine.record.moref, "left": len(machine.record.snapshots)}

    def snapshot_revert(self, arguments: Arguments) -> Any:
        """Takes a VM back to a snapshot; it is powered off then."""
        machine = self._lab.find(arguments["vm"])
        snapshot = self._lab.revert(machine, find_snapshot(machine.record, arguments["snapshot"]).moref)
        if arguments.get("power_on"):
            self._lab.set_power(machine, "poweredOn")
        return snapshot_json(machine.record, snapshot) | {"power_state": machine.record.power_state}

    def consolidate(self, arguments: Arguments) -> Any:
        """Merges the files that no snapshot needs."""
        machine = self._lab.find(arguments["vm"])
        snapshots.consolidate(machine)
        return vm_json(machine)

    def events(self, arguments: Arguments) -> Any:
        """What vCenter's event log says of a VM under its present id, oldest first."""
        record = self._lab.find(arguments["vm"]).record
        found = [event for event in self._lab.events.all() if event.vm == record.moref]
        return {"vm": record.moref, "events": [event.model_dump(mode="json") for event in found]}
