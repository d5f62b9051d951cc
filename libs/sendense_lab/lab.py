"""The whole lab: its virtual machines, and the one place that SOAP methods and commands act on."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import structlog

from sendense_lab import cleanup, faults, hardware, kept, layers, reverting, snapshots, tracking, writes
from sendense_lab.areas import Area, round_out
from sendense_lab.busyguest import BusyGuests
from sendense_lab.config import LabSettings
from sendense_lab.disknames import DiskName
from sendense_lab.errors import AmbiguousNameError, NotFoundError
from sendense_lab.events import REVERTED, EventLog
from sendense_lab.faultboard import FaultBoard
from sendense_lab.labrecord import ActiveFault
from sendense_lab.lying import Lies
from sendense_lab.machine import Machine
from sendense_lab.records import DATASTORE, Device, Place, PowerState, SnapshotDisk, SnapshotRecord
from sendense_lab.store import LabStore
from sendense_lab.tasks import TaskRunner

log = structlog.get_logger(__name__)

REMEMBERED_CALLS = 20_000
FIRST_ATTRIBUTE = 101
"""Key of the first custom attribute."""


class Lab:
    """State and operations; every method may be called from any thread.

    Attributes:
        settings: As given at the start.
        store: Its folder.
        changed: Notified whenever anything that a property collector may watch has changed.
        tasks: vCenter's tasks.
        events: vCenter's events.
        faults: How it was told to misbehave.
        busy: Guests that write by themselves.
        calls: The latest API calls: method and managed object id.
        stopping: Set when long work must end soon and undo itself.
        lock: Guards `record`, and the names of VMs.
        creating: Name and folder of VMs that are being made.
    """

    def __init__(self, settings: LabSettings) -> None:
        self.settings = settings
        self.changed = threading.Condition()
        self.store = LabStore(settings.root)
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.creating: set[tuple[str, str]] = set()
        self.calls: deque[tuple[str, str]] = deque(maxlen=REMEMBERED_CALLS)
        cleanup.clean(settings.root)
        self.store.run.mkdir()
        self.record = self.store.load_lab()
        self.store.save_lab(self.record)
        self.machines = {record.moref: Machine(record, self.store, self.notify) for record in self.store.load_vms()}
        self.tasks = TaskRunner(self.notify)
        self.events = EventLog(settings.root / "events.jsonl")
        self.faults = FaultBoard(self.record.faults, self.record.faults_made, self._save_faults)
        self.busy = BusyGuests()
        self._lies = Lies(self.faults)
        self._remove_unfinished()
        for machine in self.machines.values():
            writes.finish_pending(machine)
            _remove_strays(machine)

    def close(self) -> None:
        """Ends in order: waits for tasks and guest operations under way."""
        self.give_up()
        self.busy.stop_all()
        self.tasks.close()
        for machine in list(self.machines.values()):
            with machine.lock:
                pass

    def give_up(self) -> None:
        """Lets long work (the creation of a VM) end soon and undo itself."""
        self.stopping.set()

    def notify(self) -> None:
        """Wakes those who wait for updates."""
        with self.changed:
            self.changed.notify_all()

    def _remove_unfinished(self) -> None:
        """A VM whose creation was cut short has a folder but no record."""
        known = {machine.record.directory for machine in self.machines.values()}
        for folder in self.store.datastore.iterdir():
            if folder.name not in known:
                log.info("removing an unfinished VM", folder=folder.name)
                shutil.rmtree(folder)

    def next_id(self) -> int:
        """Returns a number for a managed object id, never given before."""
        with self.lock:
            number = self.record.next_id + 1
            self.save(next_id=number)
            return number

    def host(self, name: str) -> Place:
        """Returns a host by its name, a new one if need be."""
        with self.lock:
            place = _place(self.record.hosts, name, "host")
            self.save(hosts=tuple(dict.fromkeys((*self.record.hosts, place))))
            return place

    def attribute_key(self, name: str) -> int:
        """Returns the key of a custom attribute, which is defined when it is not."""
        with self.lock:
            names = tuple(dict.fromkeys((*self.record.attributes, name)))
            if names != self.record.attributes:
                self.save(attributes=names)
        return FIRST_ATTRIBUTE + names.index(name)

    def datastore(self, name: str) -> Place:
        """Returns a datastore by its name, a new one if need be."""
        with self.lock:
            place = _place(self.record.datastores, name, "datastore")
            self.save(datastores=tuple(dict.fromkeys((*self.record.datastores, place))))
            return place

    def save(self, **update: object) -> None:
        """Changes the lab's record; the caller holds `lock`."""
        self.record = self.record.model_copy(update=update)
        self.store.save_lab(self.record)

    def _save_faults(self, active: tuple[ActiveFault, ...], made: int) -> None:
        with self.lock:
            self.save(faults=active, faults_made=made)

    def remember_port(self, port: int) -> None:
        """Saves the port, to be used again at the next start."""
        with self.lock:
            self.save(port=port)

    def page_areas(self, machine: Machine | None = None, disk: Device | None = None) -> int:
        """Returns how many areas one answer of QueryChangedDiskAreas holds at most."""
        vm, uuid = machine.record.instance_uuid if machine else None, disk.uuid if disk else None
        fault = self.faults.take(faults.CbtPageAreas, vm=vm, disk=uuid)
        return fault.areas if fault else self.settings.page_areas

    def find(self, name: str) -> Machine:
        """Returns a VM by its managed object id or its name.

        Raises:
            NotFoundError: There is none.
            AmbiguousNameError: There are several of that name.
        """
        if name in self.machines:
            return self.machines[name]
        found = [machine for machine in list(self.machines.values()) if machine.record.name == name]
        if not found:
            raise NotFoundError(f"There is no VM {name!r}", help="`sendense-lab vm list` shows all.")
        if len(found) > 1:
            raise AmbiguousNameError(name, [machine.record.moref for machine in found])
        return found[0]

    def find_snapshot(self, moref: str) -> tuple[Machine, SnapshotRecord] | None:
        """Returns an open snapshot and its VM."""
        for machine in list(self.machines.values()):
            snapshot = machine.record.snapshot(moref)
            if snapshot is not None:
                return machine, snapshot
        return None

    def create_snapshot(self, machine: Machine, name: str, description: str, *, quiesce: bool) -> SnapshotRecord:
        """Freezes all disks of a VM."""
        moref = f"snapshot-{self.next_id()}"
        vm = machine.record.instance_uuid
        unlucky = frozenset(
            disk.uuid
            for disk in machine.record.disks
            if disk.in_snapshots and self.faults.take(faults.CbtEmptyId, vm=vm, disk=disk.uuid)
        )
        snapshot = snapshots.create(machine, moref, name, description, quiesce=quiesce, without_change_id=unlucky)
        self.events.add("VirtualMachine.createSnapshot", machine.record, f"Create virtual machine snapshot {name}")
        return snapshot

    def remove_snapshot(self, machine: Machine, moref: str, *, children: bool, merge: bool) -> None:
        """Removes a snapshot, keeping its content when the lab was told to."""
        keep = self.settings.kept_snapshots if self.settings.keep_snapshots else 0
        snapshots.remove(machine, moref, children=children, merge=merge, keep=keep)
        self.events.add("vm.Snapshot.remove", machine.record, f"Remove snapshot {moref}")

    def revert(self, machine: Machine, moref: str) -> SnapshotRecord:
        """Takes a VM back to a snapshot."""
        snapshot = reverting.revert(machine, moref)
        record = machine.record
        self.events.add(
            REVERTED,
            record,
            f"The execution state of the virtual machine {record.name} on host {record.host.name}, in compute resource"
            f" lab-host.local has been reverted to the state of snapshot {snapshot.name}, with ID {snapshot.number}",
        )
        return snapshot

    def set_power(self, machine: Machine, state: PowerState) -> None:
        """Switches a VM on or off.

        Raises:
            InvalidRequestError: A template cannot run.
        """
        hardware.set_power(machine, state)
        kind, word = ("VmPoweredOnEvent", "on") if state == "poweredOn" else ("VmPoweredOffEvent", "off")
        self.events.add(kind, machine.record, f"{machine.record.name} is powered {word}")

    def changed_areas(
        self, machine: Machine, snapshot: SnapshotRecord | None, device: Device, since: str
    ) -> tuple[Area, ...]:
        """Returns what changed on a disk since a change id, up to a snapshot or up to now.

        Args:
            machine: The VM.
            snapshot: None stands for now.
            device: The disk, as the snapshot has it.
            since: Change id, or `*` for all areas that hold data.

        Raises:
            ChangeIdError: `since` is malformed.
            TrackingResetError: Tracking cannot tell.
        """
        record = machine.record
        disk = record.disk_like(device)
        if disk is None or disk.tracking is None:
            raise tracking.TrackingResetError(f"{device.label}: change tracking is not enabled")
        until = device.change_id if isinstance(device, SnapshotDisk) else None
        if snapshot is not None and until is None:
            raise tracking.TrackingResetError(f"{disk.label}: the snapshot has no change id")
        if snapshot is not None and snapshot not in record.line():
            raise tracking.TrackingResetError(f"{disk.label}: the VM does not work on this snapshot any more")
        if since == "*":
            data = layers.data_areas(machine.directory, record.chain(device.top))
            return round_out(data, device.capacity)
        return tracking.changes_since(disk, since, until)

    def shown_areas(
        self, machine: Machine, snapshot: SnapshotRecord | None, device: Device, since: str
    ) -> tuple[Area, ...]:
        """Returns `changed_areas` as the API tells them: without what a fault hides."""
        areas = self.changed_areas(machine, snapshot, device, since)
        return self._lies.told(machine.record.instance_uuid, device, areas)

    def export_disk(self, machine: Machine, name: DiskName, snapshot: str | None, output: Path) -> None:
        """Writes a disk's raw content, now or of an open or kept snapshot, to a sparse file.

        Args:
            machine: The VM.
            name: The disk.
            snapshot: A snapshot's managed object id or its name (the latest of that name).
            output: The file to write.

        Raises:
            NotFoundError: No such disk or snapshot.
        """
        with machine.lock:
            record = machine.record
            if snapshot is None:
                layers.export(machine.directory, record.chain(machine.disk_at(name).top), output)
                return
            for found in reversed(record.snapshots):
                disk = machine.pick(name, found.disks) if snapshot in (found.moref, found.name) else None
                if disk is not None:
                    layers.export(machine.directory, record.chain(disk.top), output)
                    return
            if content := kept.find(machine, snapshot, name):
                kept.export(machine, *content, output)
                return
        raise NotFoundError(
            f"{record.name} has no snapshot {snapshot!r} with a disk {name}",
            help="A removed one can be exported only when the lab ran with SENDENSE_LAB_KEEP_SNAPSHOTS=1.",
        )

    def free_bytes(self, datastore: Place = DATASTORE) -> tuple[int, int]:
        """Returns capacity and free space of a datastore, bytes."""
        usage = shutil.disk_usage(self.store.datastore)
        fault = self.faults.take(faults.DatastoreFree, fits=lambda fault: fault.fits(datastore.name))
        return usage.total, fault.bytes if fault else usage.free


def _place(known: Sequence[Place], name: str, kind: str) -> Place:
    found = next((place for place in known if place.name == name), None)
    return found or Place(name=name, moref=f"{kind}-{1000 + len(known)}")


def _remove_strays(machine: Machine) -> None:
    """A killed server may have made a file and not noted it, or noted that it goes and not removed it."""
    known = set(machine.record.layers)
    for path in machine.directory.iterdir():
        if path.name not in known:
            path.unlink()
