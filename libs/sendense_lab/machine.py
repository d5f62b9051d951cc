"""A virtual machine at work: its lock, its record, its disks' chains, and what the guest writes into them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from sendense_lab import layers, tracking, volumes
from sendense_lab.areas import Area, merge, round_out, subtract
from sendense_lab.errors import InvalidRequestError, NotFoundError
from sendense_lab.records import DiskRecord, KeptDisk, KeptSnapshot, Layer, VmRecord
from sendense_lab.store import LabStore

log = structlog.get_logger(__name__)


class GuestSession:
    """The guest's disks during one operation: each is exported, and mounted, when first asked for."""

    def __init__(self, machine: Machine, run_dir: Path, stack: contextlib.ExitStack) -> None:
        self._machine = machine
        self._run_dir = run_dir
        self._stack = stack
        self._files: dict[int, Path] = {}
        self._mounts: dict[int, Path] = {}
        self._writable: set[int] = set()

    @property
    def touched(self) -> list[int]:
        """Indexes of the disks that have an overlay."""
        return sorted(self._files)

    def file(self, index: int) -> Path:
        """Returns a disk as a raw, writable file."""
        if index not in self._files:
            disk = self._machine.disk_at(index)
            overlay = overlay_name(disk)
            layers.create_delta(self._machine.directory, overlay, disk.top, disk.capacity)
            place = self._run_dir / f"disk{index}"
            place.mkdir()
            self._files[index] = self._stack.enter_context(
                volumes.exported(self._machine.directory, disk.chain, overlay, place)
            )
        return self._files[index]

    def root(self, index: int, *, writable: bool) -> Path:
        """Returns where a disk's file system is mounted; a mount that only reads leaves no trace on the disk."""
        if index not in self._mounts:
            disk = self._machine.disk_at(index)
            device = self._stack.enter_context(volumes.loop_device(self.file(index), disk.capacity))
            at = self._run_dir / "mnt" / str(index)
            at.mkdir(parents=True)
            self._mounts[index] = self._stack.enter_context(
                volumes.mounted(device, disk.filesystem, at, read_only=not writable)
            )
        elif writable and index not in self._writable:
            volumes.remount_writable(self._mounts[index])
        if writable:
            self._writable.add(index)
        return self._mounts[index]


def overlay_name(disk: DiskRecord) -> str:
    """Returns the file name of the overlay that a guest operation on this disk works on."""
    return f"{disk.base}.overlay.qcow2"


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

    def disk_at(self, index: int) -> DiskRecord:
        """Returns a disk by its index, 0 being the first.

        Raises:
            NotFoundError: There is none.
        """
        if not 0 <= index < len(self.record.disks):
            raise NotFoundError(
                f"{self.record.name} has no disk {index}",
                help=f"It has {len(self.record.disks)} disks, counted from 0.",
            )
        return self.record.disks[index]

    @contextlib.contextmanager
    def guest(self, *, read_only: bool = False) -> Iterator[GuestSession]:
        """Lets the guest work on its disks.

        All or nothing: when the body ends well, everything written is noted in the change logs and committed
        into the disks' tops; when it raises, the disks stay as they were. With `read_only` nothing is kept.
        """
        with self.lock:
            if not read_only and self.record.power_state != "poweredOn":
                raise InvalidRequestError(f"{self.record.name} is powered off: its guest does nothing")
            run_dir = Path(tempfile.mkdtemp(prefix=f"{self.record.moref}-", dir=self.store.run))
            try:
                with contextlib.ExitStack() as stack:
                    session = GuestSession(self, run_dir, stack)
                    yield session
                if not read_only:
                    self._keep_changes(session.touched)
            finally:
                shutil.rmtree(run_dir)
                for disk in self.record.disks:
                    if disk.pending_overlay is None:
                        (self.directory / overlay_name(disk)).unlink(missing_ok=True)

    def _keep_changes(self, indexes: list[int]) -> None:
        record = self.record
        for index in indexes:
            disk = record.disks[index]
            areas = layers.own_areas(self.directory, overlay_name(disk))
            if areas:
                noted = tracking.record_changes(disk, areas)
                record = record.with_disk(noted.model_copy(update={"pending_overlay": overlay_name(disk)}))
        # From here on a killed server finishes the commit at its next start.
        self.save(record)
        self.finish_pending()

    def finish_pending(self) -> None:
        """Commits overlays whose changes are noted; what a killed server left is done again."""
        with self.lock:
            for disk in self.record.disks:
                if disk.pending_overlay:
                    self.commit_into(disk, disk.pending_overlay, disk.top)
                    self.save(self.record.with_disk(disk.model_copy(update={"pending_overlay": None})))
                (self.directory / overlay_name(disk)).unlink(missing_ok=True)

    def commit_into(self, disk: DiskRecord, file: str, into: Layer) -> tuple[Area, ...]:
        """Writes a delta's content into the layer below; returns the areas written.

        What this overwrites in the base is saved first for the kept snapshot that still needs it.
        """
        areas = round_out(layers.own_areas(self.directory, file), disk.capacity)
        if into.format == "raw":
            self._save_undo(disk, into, areas)
        layers.commit(self.directory, file)
        return areas

    def _save_undo(self, disk: DiskRecord, base: Layer, areas: tuple[Area, ...]) -> None:
        kept = list(self.record.kept)
        for position in reversed(range(len(kept))):
            newest = kept[position].disks.get(disk.key)
            if newest is None or not newest.undo:
                continue
            missing = subtract(areas, newest.saved)
            layers.copy_areas(self.directory / base.file, self.store.kept / newest.file, missing)
            saved = newest.model_copy(update={"saved": merge((*newest.saved, *missing))})
            kept[position] = _with_disk(kept[position], disk.key, saved)
            self.save(self.record.model_copy(update={"kept": tuple(kept)}))
            return  # older ones read through this one

    def allocated_areas(self, disk: DiskRecord, layer: Layer) -> tuple[Area, ...]:
        """Returns the areas that hold data at this layer, in whole tracking blocks."""
        return round_out(layers.data_areas(self.directory, layer), disk.capacity)

    def export_kept(self, key: int, moref: str, output: Path) -> None:
        """Writes the content of a removed snapshot's disk to a sparse raw file.

        Raises:
            NotFoundError: It was not kept.
        """
        with self.lock:
            position = next((n for n, kept in enumerate(self.record.kept) if kept.moref == moref), None)
            kept_disk = None if position is None else self.record.kept[position].disks.get(key)
            if position is None or kept_disk is None:
                raise NotFoundError(f"The content of snapshot {moref} was not kept")
            if not kept_disk.undo:
                layers.copy_sparse(self.store.kept / kept_disk.file, output)
                return
            disk = self.record.disk(key)
            if disk is None:
                raise NotFoundError(f"{self.record.name} has no disk with key {key} any more")
            layers.copy_sparse(self.directory / disk.chain[0].file, output)
            # Newest first: each goes one step further back.
            for later in reversed(self.record.kept[position:]):
                step = later.disks.get(key)
                if step is not None and step.undo and step.saved:
                    layers.copy_areas(self.store.kept / step.file, output, step.saved)


def _with_disk(snapshot: KeptSnapshot, key: int, disk: KeptDisk) -> KeptSnapshot:
    return snapshot.model_copy(update={"disks": snapshot.disks | {key: disk}})
