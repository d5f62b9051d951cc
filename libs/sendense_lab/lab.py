"""The whole lab: its virtual machines, and the one place that SOAP methods and commands act on."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from pathlib import Path

import structlog

from sendense_lab import cleanup, creation, layers, snapshots, tracking
from sendense_lab.areas import Area
from sendense_lab.config import LabSettings
from sendense_lab.errors import AmbiguousNameError, InvalidRequestError, NotFoundError
from sendense_lab.machine import Machine
from sendense_lab.records import DiskRecord, Faults, Filesystem, SnapshotRecord, VmRecord
from sendense_lab.store import LabStore
from sendense_lab.tasks import TaskRunner

log = structlog.get_logger(__name__)


class Lab:
    """State and operations; every method may be called from any thread.

    Attributes:
        settings: As given at the start.
        store: Its folder.
        changed: Notified whenever anything that a property collector may watch has changed.
        tasks: vCenter's tasks.
    """

    def __init__(self, settings: LabSettings) -> None:
        self.settings = settings
        self.changed = threading.Condition()
        self.store = LabStore(settings.root)
        cleanup.clean(settings.root)
        self.store.run.mkdir()
        self._lock = threading.Lock()
        self._creating: set[tuple[str, str]] = set()
        self._stopping = threading.Event()
        self.record = self.store.load_lab()
        self.store.save_lab(self.record)
        self.machines = {record.moref: Machine(record, self.store, self.notify) for record in self.store.load_vms()}
        self.tasks = TaskRunner(self.notify)
        self._remove_unfinished()
        for machine in self.machines.values():
            machine.finish_pending()
            snapshots.consolidate(machine)

    def close(self) -> None:
        """Ends in order: waits for tasks and guest operations under way."""
        self.give_up()
        self.tasks.close()
        for machine in list(self.machines.values()):
            with machine.lock:
                pass

    def give_up(self) -> None:
        """Lets long work (the creation of a VM) end soon and undo itself."""
        self._stopping.set()

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
        with self._lock:
            number = self.record.next_id + 1
            self._save(next_id=number)
            return number

    def _save(self, **update: object) -> None:
        self.record = self.record.model_copy(update=update)
        self.store.save_lab(self.record)

    def remember_port(self, port: int) -> None:
        """Saves the port, to be used again at the next start."""
        with self._lock:
            self._save(port=port)

    @property
    def page_areas(self) -> int:
        """Most areas in one answer of QueryChangedDiskAreas."""
        return self.record.faults.page_areas or self.settings.page_areas

    def set_faults(self, faults: Faults) -> None:
        """Changes how the lab misbehaves.

        Raises:
            InvalidRequestError: A value makes no sense.
        """
        if faults.page_areas is not None and faults.page_areas < 1:
            raise InvalidRequestError("A page has at least one area")
        with self._lock:
            self._save(faults=faults)

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

    def create_vm(
        self, name: str, disks: list[tuple[int, Filesystem]], *, seed: int, small_files: int, folder: str = ""
    ) -> Machine:
        """Creates a powered-on VM with filled disks.

        Args:
            name: Its name; in one folder there is only one of that name.
            disks: (bytes, file system), the root's first.
            seed: Seed of all content.
            small_files: Files of 1 to 64 KiB over all disks.
            folder: Name of a folder for the VM.

        Raises:
            InvalidRequestError: No disk, or the name is taken in that folder.
        """
        if not disks or not name or "/" in name:
            raise InvalidRequestError("A VM has a name without `/` and at least one disk")
        moref = f"vm-{self.next_id()}"
        directory = self._reserve(name, folder)
        try:
            record = VmRecord(
                moref=moref,
                name=name,
                folder=folder,
                directory=directory,
                uuid=str(uuid.uuid4()),
                instance_uuid=str(uuid.uuid4()),
                seed=seed,
                disks=creation.plan_disks(directory, disks),
            )
            machine = Machine(record, self.store, self.notify)
            self._write_disks(machine, small_files)
            machine.save(record)
            self.machines[moref] = machine
        finally:
            self._creating.discard((name, folder))
        self.notify()
        return machine

    def _reserve(self, name: str, folder: str) -> str:
        """Takes a name in a folder and makes a directory in the datastore for it; returns the directory's name."""
        with self._lock:
            taken = {(machine.record.name, machine.record.folder) for machine in self.machines.values()}
            if (name, folder) in taken | self._creating:
                raise InvalidRequestError(
                    f"There is a VM {name!r} in folder {folder or 'vm'!r} already",
                    help="Give another name, or another folder with --folder.",
                )
            directory = creation.directory_name(name, {path.name for path in self.store.datastore.iterdir()})
            (self.store.datastore / directory).mkdir()
            self._creating.add((name, folder))
            if folder and folder not in self.record.folders:
                self._save(folders={**self.record.folders, folder: f"group-v{1001 + len(self.record.folders)}"})
            return directory

    def _write_disks(self, machine: Machine, small_files: int) -> None:
        run_dir = Path(tempfile.mkdtemp(prefix=f"{machine.record.moref}-", dir=self.store.run))
        try:
            creation.write_disks(machine.record, machine.directory, run_dir, small_files, self._stopping)
        except BaseException:
            shutil.rmtree(machine.directory)
            raise
        finally:
            shutil.rmtree(run_dir)

    def delete_vm(self, name: str) -> VmRecord:
        """Removes a VM, its snapshots and whatever was kept of it."""
        machine = self.find(name)
        with machine.lock:
            record = machine.record
            del self.machines[record.moref]
            self.store.delete_vm(record.moref)
            shutil.rmtree(machine.directory)
            for path in self.store.kept.glob(f"{record.moref}-*.raw"):
                path.unlink()
        self.notify()
        return record

    def create_snapshot(self, machine: Machine, name: str, description: str, *, quiesce: bool) -> SnapshotRecord:
        """Freezes all disks of a VM."""
        moref = f"snapshot-{self.next_id()}"
        return snapshots.create(machine, moref, name, description, quiesce=quiesce)

    def remove_snapshot(self, machine: Machine, moref: str, *, children: bool, consolidate: bool) -> None:
        """Removes a snapshot, keeping its content when the lab was told to."""
        snapshots.remove(
            machine,
            moref,
            children=children,
            consolidate_disks=consolidate,
            keep=self.settings.keep_snapshots,
        )

    def changed_areas(
        self, machine: Machine, disk: DiskRecord, snapshot: SnapshotRecord | None, since: str
    ) -> tuple[Area, ...]:
        """Returns what changed on a disk since a change id, up to a snapshot or up to now.

        Args:
            machine: The VM.
            disk: Its disk.
            snapshot: None stands for now.
            since: Change id, or `*` for all areas that hold data.

        Raises:
            ChangeIdError: `since` is malformed.
            TrackingResetError: Tracking cannot tell.
        """
        frozen = snapshot.disks.get(disk.key) if snapshot else None
        if since == "*":
            if disk.tracking is None:
                raise tracking.TrackingResetError(f"{disk.label}: change tracking is not enabled")
            layer = next((layer for layer in disk.chain if frozen and layer.file == frozen.layer), disk.top)
            return machine.allocated_areas(disk, layer)
        if frozen is not None and frozen.change_id is None:
            raise tracking.TrackingResetError(f"{disk.label}: the snapshot has no change id")
        return tracking.changes_since(disk, since, frozen.change_id if frozen else None)

    def export_disk(self, machine: Machine, index: int, snapshot: str | None, output: Path) -> None:
        """Writes a disk's raw content, now or of an open or kept snapshot, to a sparse file.

        Args:
            machine: The VM.
            index: Index of the disk.
            snapshot: A snapshot's managed object id or its name (the latest of that name).
            output: The file to write.

        Raises:
            NotFoundError: No such disk or snapshot.
        """
        disk = machine.disk_at(index)
        with machine.lock:
            record = machine.record
            disk = record.disks[index]
            if snapshot is None:
                layers.export_raw(machine.directory, disk.top, output)
                return
            for found in reversed(record.snapshots):
                if snapshot in (found.moref, found.name) and disk.key in found.disks:
                    frozen = found.disks[disk.key].layer
                    layer = next(layer for layer in disk.chain if layer.file == frozen)
                    layers.export_raw(machine.directory, layer, output)
                    return
            for kept in reversed(record.kept):
                if snapshot in (kept.moref, kept.name):
                    machine.export_kept(disk.key, kept.moref, output)
                    return
        raise NotFoundError(
            f"{record.name} has no snapshot {snapshot!r}",
            help="A removed one can be exported only when the lab ran with SENDENSE_LAB_KEEP_SNAPSHOTS=1.",
        )

    def free_bytes(self) -> tuple[int, int]:
        """Returns capacity and free space of the datastore, bytes."""
        usage = shutil.disk_usage(self.store.datastore)
        return usage.total, usage.free
