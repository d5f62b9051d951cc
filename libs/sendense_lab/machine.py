"""A virtual machine: its lock, its present record, and how commands name its disks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from sendense_lab.disknames import FIRST_KEY, DiskName
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.overlays import Overlay
from sendense_lab.records import Device, DiskRecord, KeptDisk, Layer, VmRecord
from sendense_lab.store import LabStore

_AnyDisk = TypeVar("_AnyDisk", bound=Device | KeptDisk)


class Machine:
    """One VM.

    Attributes:
        record: Its present record; replaced, never changed.
        lock: Held by whatever changes disks; readers of `record` need none.
        directory: Its folder in the datastore.
    """

    def __init__(self, record: VmRecord, store: LabStore, notify: Callable[[], None]) -> None:
        self.record = record
        self.store = store
        self.lock = threading.RLock()
        self.directory = store.datastore / record.directory
        self._notify = notify

    def save(self, record: VmRecord) -> None:
        """Makes a new record the present one."""
        self.store.save_vm(record)
        self.record = record
        self._notify()

    def overlay(self, disk: DiskRecord) -> Overlay:
        """Returns the overlay that a guest operation on this disk works on."""
        return Overlay.named(self.directory, disk.base)

    def pick(self, name: DiskName, among: Iterable[_AnyDisk]) -> _AnyDisk | None:
        """Returns the disk of a snapshot that a command means; an index counts the disks that the VM has now."""
        uuid, key = str(name), int(name) if str(name).isdecimal() else -1
        if 0 <= key < FIRST_KEY:
            uuid = self.record.disks[key].uuid if key < len(self.record.disks) else ""
        return next((disk for disk in among if uuid == disk.uuid or key == disk.key), None)

    def disk_at(self, name: DiskName) -> DiskRecord:
        """Returns a disk by its index, 0 being the first, its device key or its uuid.

        Raises:
            NotFoundError: There is none.
        """
        found = self.pick(name, self.record.disks)
        if found is None:
            raise NotFoundError(
                f"{self.record.name} has no disk {name}",
                help=f"It has {len(self.record.disks)} disks, counted from 0; a device key or uuid will do as well.",
            )
        return found

    def require_running(self) -> None:
        """Raises unless the guest can do something.

        Raises:
            InvalidRequestError: The VM is powered off.
        """
        if self.record.power_state != "poweredOn":
            raise InvalidRequestError(f"{self.record.name} is powered off: its guest does nothing")

    def top(self, disk: Device) -> Layer:
        """Returns the layer that takes the guest's writes."""
        return self.record.layers[disk.top]
