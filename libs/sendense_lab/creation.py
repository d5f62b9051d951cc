"""Making disks: their identity and place, their raw files, partition tables, file systems and content."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import structlog

from sendense_lab import content, layers, volumes
from sendense_lab.diskspec import DiskSpec, take_slot
from sendense_lab.errors import InvalidRequestError
from sendense_lab.programs import run
from sendense_lab.records import DATASTORE, Controller, DiskRecord, Layer, Place, VmRecord
from sendense_lab.store import LabStore

log = structlog.get_logger(__name__)

MAX_DISKS = 60
"""Of a VM: four controllers with 15 units each."""
BASE_FILES = {None: "flat", "physicalMode": "rdmp", "virtualMode": "rdm"}
"""How the file behind a base's descriptor is named."""


def directory_name(name: str, taken: set[str]) -> str:
    """Returns a folder name in the datastore for a VM; vCenter adds `_1` and so on to one that is taken."""
    plain = re.sub(r"[^\w.-]", "_", name) or "vm"
    number, candidate = 0, plain
    while candidate in taken:
        number += 1
        candidate = f"{plain}_{number}"
    return candidate


def plan_disk(record: VmRecord, spec: DiskSpec, datastore: Place = DATASTORE) -> tuple[VmRecord, DiskRecord]:
    """Returns a VM's record with one more disk, and that disk; its file is still to be made.

    The first disk with a file system is mounted at /, the next at /data, /data2 and so on.

    Raises:
        InvalidRequestError: Its slot is taken, or the controller is full.
    """
    if len(record.disks) >= MAX_DISKS:
        raise InvalidRequestError(f"A VM has at most {MAX_DISKS} disks")
    slot = take_slot(spec, record.disks)
    descriptors = {layer.descriptor for layer in record.layers.values()}
    base = next(
        name
        for name in itertools.chain([record.directory], (f"{record.directory}_{n}" for n in itertools.count(1)))
        if f"{name}.vmdk" not in descriptors
    )
    layer = Layer(file=f"{base}-{BASE_FILES[spec.mapping]}.vmdk", descriptor=f"{base}.vmdk")
    labels = {disk.label for disk in record.disks}
    mountpoints = {disk.mountpoint for disk in record.disks}
    places = itertools.chain(["/", "/data"], (f"/data{n}" for n in itertools.count(2)))
    disk = DiskRecord(
        key=slot.key,
        bus=slot.bus,
        unit=slot.unit,
        label=next(label for n in itertools.count(1) if (label := f"Hard disk {n}") not in labels),
        uuid=str(uuid.uuid4()),
        capacity=spec.size,
        base=base,
        top=layer.file,
        mode=spec.mode,
        mapping=spec.mapping,
        multi_writer=spec.multi_writer,
        datastore=datastore,
        filesystem=spec.filesystem,
        filesystem_uuid=str(uuid.uuid4()) if spec.filesystem else "",
        mountpoint=next(place for place in places if place not in mountpoints) if spec.filesystem else "",
    )
    controllers = record.controllers
    if slot.bus not in {controller.bus for controller in controllers}:
        controllers = (*controllers, Controller(bus=slot.bus))
    grown = record.model_copy(update={"disks": (*record.disks, disk), "controllers": controllers})
    return grown.with_layers(layer), disk


def write_disks(
    record: VmRecord, disks: Sequence[DiskRecord], store: LabStore, small_files: int, stopping: threading.Event
) -> None:
    """Creates the files of a VM's new disks and fills those that have a file system.

    Args:
        record: The VM, with these disks.
        disks: The new ones.
        store: The lab's folder; the VM's folder in its datastore exists.
        small_files: Files of 1 to 64 KiB over all these disks.
        stopping: When set, the work is given up.
    """
    directory = store.datastore / record.directory
    total = sum(disk.capacity for disk in disks if disk.filesystem)
    for disk in disks:
        layers.create(directory / disk.top, disk.capacity)
        if disk.filesystem:
            run_dir = Path(tempfile.mkdtemp(prefix=f"{record.moref}-", dir=store.run))
            try:
                _fill(record, disk, directory / disk.top, run_dir, small_files * disk.capacity // total, stopping)
            finally:
                shutil.rmtree(run_dir)


def _fill(
    record: VmRecord, disk: DiskRecord, flat: Path, run_dir: Path, small_files: int, stopping: threading.Event
) -> None:
    end = (disk.capacity - volumes.PARTITION_TAIL) // 512
    start = volumes.PARTITION_START // 512
    table = f"label: gpt\nunit: sectors\nstart={start}, size={end - start}, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(flat), stdin=table)
    index = record.disks.index(disk)
    at = run_dir / "mnt" / str(index)
    at.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(volumes.loop_device(flat, disk.capacity))
        _make_filesystem(device, disk)
        root = stack.enter_context(volumes.mounted(device, disk.filesystem or "ext4", at))
        if disk.mountpoint == "/":
            content.write_root(root, record.name, record.seed, mounts(record))
        content.populate(root, disk.capacity, small_files, record.seed, index, stopping)
    log.info("disk written", vm=record.name, disk=index, filesystem=disk.filesystem)


def mounts(record: VmRecord) -> list[tuple[str, str, str]]:
    """Returns (file system UUID, mount point, type) of a VM's disks, the root first."""
    found = [(disk.filesystem_uuid, disk.mountpoint, disk.filesystem) for disk in record.disks if disk.filesystem]
    return sorted(found, key=lambda mount: mount[1])


def _make_filesystem(device: str, disk: DiskRecord) -> None:
    if disk.filesystem == "ext4":
        # Nothing is left to be initialised in the background: a guest at rest must not write.
        lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, "-U", disk.filesystem_uuid, device)
    else:
        run("mkfs.xfs", "-q", "-f", "-K", "-m", f"uuid={disk.filesystem_uuid}", device)
