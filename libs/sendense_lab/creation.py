"""Making a new virtual machine: its identity, its raw disks, their partition tables, file systems and content."""

from __future__ import annotations

import contextlib
import re
import threading
import uuid
from pathlib import Path

import structlog

from sendense_lab import content, volumes
from sendense_lab.errors import InvalidRequestError
from sendense_lab.programs import run
from sendense_lab.records import DiskRecord, Filesystem, Layer, VmRecord

log = structlog.get_logger(__name__)

SMALLEST: dict[Filesystem, int] = {"ext4": 16 * 1024**2, "xfs": 304 * 1024**2}
"""Smallest disk for each file system, bytes; mkfs.xfs wants 300 MiB for itself."""
FIRST_KEY = 2000
"""Device key of the first disk on the first SCSI controller, as in vSphere."""
RESERVED_UNIT = 7
"""The controller's own SCSI unit; the next disk is 8."""
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_disk(text: str) -> tuple[int, Filesystem]:
    """Reads `2G:ext4` into (bytes, file system).

    Raises:
        InvalidRequestError: It is not of that form, too small, or not in whole 64 KiB.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?(?::(\w+))?", text)
    kind = (match[3] or "ext4") if match else ""
    if match is None or kind not in SMALLEST:
        raise InvalidRequestError(f"{text!r} is not a disk", help="Write size and file system, as 2G:ext4 or 1G:xfs.")
    filesystem: Filesystem = "xfs" if kind == "xfs" else "ext4"
    size = int(match[1]) * UNITS[match[2]]
    if size < SMALLEST[filesystem] or size % (1024 * 1024):
        raise InvalidRequestError(
            f"A disk of {size} bytes cannot hold {filesystem}",
            help=f"Give whole MiB, at least {SMALLEST[filesystem] // 1024**2}M.",
        )
    return size, filesystem


def directory_name(name: str, taken: set[str]) -> str:
    """Returns a folder name in the datastore for a VM; vCenter adds `_1` and so on to one that is taken."""
    plain = re.sub(r"[^\w.-]", "_", name) or "vm"
    number, candidate = 0, plain
    while candidate in taken:
        number += 1
        candidate = f"{plain}_{number}"
    return candidate


def plan_disks(base: str, wanted: list[tuple[int, Filesystem]]) -> tuple[DiskRecord, ...]:
    """Returns the records of a new VM's disks; the first is mounted at /, the next at /data, /data2 and so on."""
    disks = []
    for index, (capacity, filesystem) in enumerate(wanted):
        name = base if index == 0 else f"{base}_{index}"
        unit = index if index < RESERVED_UNIT else index + 1
        disks.append(
            DiskRecord(
                key=FIRST_KEY + unit,
                unit=unit,
                label=f"Hard disk {index + 1}",
                uuid=str(uuid.uuid4()),
                capacity=capacity,
                base=name,
                chain=(Layer(file=f"{name}-flat.vmdk", format="raw", descriptor=f"{name}.vmdk"),),
                filesystem=filesystem,
                filesystem_uuid=str(uuid.uuid4()),
                mountpoint="/" if index == 0 else "/data" if index == 1 else f"/data{index}",
            )
        )
    return tuple(disks)


def write_disks(record: VmRecord, directory: Path, run_dir: Path, small_files: int, stopping: threading.Event) -> int:
    """Creates the disks' files and fills them.

    Args:
        record: The VM.
        directory: Its folder in the datastore, which exists.
        run_dir: An empty folder for mount points.
        small_files: Files of 1 to 64 KiB over all disks.
        stopping: When set, the work is given up.

    Returns:
        Bytes of file content written.
    """
    total = sum(disk.capacity for disk in record.disks)
    written = 0
    for index, disk in enumerate(record.disks):
        flat = directory / disk.chain[0].file
        with flat.open("xb") as file:
            file.truncate(disk.capacity)
        end = (disk.capacity - volumes.PARTITION_TAIL) // 512
        start = volumes.PARTITION_START // 512
        table = f"label: gpt\nunit: sectors\nstart={start}, size={end - start}, type=linux\n"
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(flat), stdin=table)
        at = run_dir / "mnt" / str(index)
        at.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            device = stack.enter_context(volumes.loop_device(flat, disk.capacity))
            _make_filesystem(device, disk)
            root = stack.enter_context(volumes.mounted(device, disk.filesystem, at))
            if index == 0:
                mounts = [(other.filesystem_uuid, other.mountpoint, other.filesystem) for other in record.disks]
                content.write_root(root, record.name, record.seed, mounts)
            share = small_files * disk.capacity // total
            written += content.populate(root, disk.capacity, share, record.seed, index, stopping)
        log.info("disk written", vm=record.name, disk=index, filesystem=disk.filesystem)
    return written


def _make_filesystem(device: str, disk: DiskRecord) -> None:
    if disk.filesystem == "ext4":
        # Nothing is left to be initialised in the background: a guest at rest must not write.
        lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, "-U", disk.filesystem_uuid, device)
    else:
        run("mkfs.xfs", "-q", "-f", "-K", "-m", f"uuid={disk.filesystem_uuid}", device)
