"""Commands about disks as the hypervisor sees them: content, changes, size, tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sendense_lab import areas, diskspec, hardware, kept, tracking
from sendense_lab.areas import Area
from sendense_lab.commanded import Arguments, Command, disk_json, index_of
from sendense_lab.disknames import DiskName
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine


class DiskCommands:
    """`disk/…`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def commands(self) -> dict[str, Command]:
        """Returns the commands by their names."""
        return {
            "disk/changed": self.changed,
            "disk/export": self.export,
            "disk/resize": self.resize,
            "disk/reset-tracking": self.reset_tracking,
        }

    def changed(self, arguments: Arguments) -> Any:
        """Areas changed since a change id, up to an open snapshot, a kept one, or now; always the truth."""
        machine = self._lab.find(arguments["vm"])
        record, since = machine.record, arguments["since"]
        uuid, key, changed = self._changed(machine, arguments["disk"], arguments.get("snapshot"), since)
        return {
            "vm": record.moref,
            "disk": index_of(record, uuid),
            "key": key,
            "since": since,
            "areas": [{"offset": start, "length": end - start} for start, end in changed],
            "bytes": areas.total(changed),
        }

    def _changed(
        self, machine: Machine, name: DiskName, snapshot: str | None, since: str
    ) -> tuple[str, int, tuple[Area, ...]]:
        record = machine.record
        if not snapshot:
            disk = machine.disk_at(name)
            return disk.uuid, disk.key, self._lab.changed_areas(machine, None, disk, since)
        for found in reversed(record.snapshots):
            frozen = machine.pick(name, found.disks) if snapshot in (found.moref, found.name) else None
            if frozen is not None:
                return frozen.uuid, frozen.key, self._lab.changed_areas(machine, found, frozen, since)
        content = kept.find(machine, snapshot, name)
        if content is None:
            raise NotFoundError(f"{record.name} has no snapshot {snapshot!r} with a disk {name}")
        until = content[1].change_id
        if until is None:
            raise tracking.TrackingResetError("The disk had no change id in that snapshot")
        disk = machine.disk_at(content[1].uuid)
        return disk.uuid, disk.key, tracking.changes_since(disk, since, until)

    def export(self, arguments: Arguments) -> Any:
        """Writes a disk's content to a file."""
        output = Path(arguments["output"])
        self._lab.export_disk(self._lab.find(arguments["vm"]), arguments["disk"], arguments.get("snapshot"), output)
        return {"output": str(output), "bytes": output.stat().st_size}

    def resize(self, arguments: Arguments) -> Any:
        """Grows a disk."""
        machine = self._lab.find(arguments["vm"])
        mode = arguments.get("tracking") or "keep"
        if mode not in ("keep", "reset"):
            raise InvalidRequestError(f"Tracking can be kept or reset, not {mode!r}")
        size = diskspec.parse_size(arguments["size"])
        disk = hardware.resize_disk(machine, arguments["disk"], size, reset_tracking=mode == "reset")
        self._lab.events.add("VmReconfiguredEvent", machine.record, f"{disk.label} has {disk.capacity} bytes")
        return disk_json(machine.record, disk)

    def reset_tracking(self, arguments: Arguments) -> Any:
        """Begins the tracking of a disk, or of all, anew."""
        machine = self._lab.find(arguments["vm"])
        disks = hardware.reset_tracking(machine, arguments.get("disk"))
        return {"vm": machine.record.moref, "disks": [index_of(machine.record, disk.uuid) for disk in disks]}
