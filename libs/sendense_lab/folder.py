"""The datastore's HTTPS folder: which file a URL names, and whether the host would let it be read now."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sendense_lab import vmfiles
from sendense_lab.lab import Lab
from sendense_lab.machine import Machine
from sendense_lab.records import DATASTORE, Device, Layer, VmRecord

DATACENTER_NAME = "lab"


class FolderError(Exception):
    """A folder request is refused.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ByteRange:
    """A satisfiable range of one file: first byte and length."""

    start: int
    length: int


@dataclass(frozen=True)
class Extent:
    """A flat file that may be read.

    Attributes:
        path: The file.
        vm: The VM that it belongs to.
        disk: uuid of the disk.
    """

    path: Path
    vm: VmRecord
    disk: str


def locate(lab: Lab, target: str) -> Extent | bytes:
    """Returns what a `/folder/<vm>/<file>?dcPath=…&dsName=…` URL names: a flat file, or a small file's content.

    Raises:
        FolderError: It does not exist, or the running VM holds it locked: the flat file can be read only while
            a snapshot keeps it frozen or the VM is off.
    """
    datastore, directory, file = _split(target)
    for machine in list(lab.machines.values()):
        if machine.record.directory == directory:
            return _file_of(machine, datastore, file)
    raise FolderError(404, f"No file {directory}/{file}")


@functools.lru_cache(maxsize=256)  # thousands of ranges of a disk name the same URL
def _split(target: str) -> tuple[str, str, str]:
    url = urlsplit(target)
    query = parse_qs(url.query)
    if query.get("dcPath") != [DATACENTER_NAME] or len(query.get("dsName", [])) != 1:
        raise FolderError(404, f"No datastore of that name: dcPath={DATACENTER_NAME}&dsName={DATASTORE.name} it is")
    directory, _, file = unquote(url.path).removeprefix("/folder/").partition("/")
    return query["dsName"][0], directory, file


def _file_of(machine: Machine, datastore: str, file: str) -> Extent | bytes:
    record = machine.record
    layer = next((found for found in record.layers.values() if file in (found.file, found.descriptor)), None)
    if layer is None:
        small = vmfiles.small_files(record).get(file)
        if small is None or datastore != DATASTORE.name:
            raise FolderError(404, f"No file {file} on {datastore}")
        return small
    disk = _disk_of(record, record.chain(layer.file)[0])
    if disk.datastore.name != datastore:
        raise FolderError(404, f"No file {file} on {datastore}")
    if layer.parent is not None:
        raise FolderError(500, f"{file} is a delta: it has no flat extent that could be read here")
    if disk.mapping is not None:
        raise FolderError(500, f"{file} is a raw device mapping: its bytes are on no datastore")
    if file == layer.descriptor:
        return _descriptor(disk, layer)
    if record.power_state == "poweredOn" and any(found.top == layer.file for found in record.disks):
        raise FolderError(500, f"{file} is locked: the running VM writes to it and no snapshot freezes it")
    return Extent(machine.directory / layer.file, record, disk.uuid)


def _disk_of(record: VmRecord, base: Layer) -> Device:
    """Returns a disk, of the VM or of one of its snapshots, that has this base."""
    everywhere: list[Device] = [*record.disks, *(disk for snapshot in record.snapshots for disk in snapshot.disks)]
    return next(disk for disk in everywhere if f"{disk.base}.vmdk" == base.descriptor)


def _descriptor(disk: Device, base: Layer) -> bytes:
    return (
        '# Disk DescriptorFile\nversion=4\nencoding="UTF-8"\nCID=fffffffe\nparentCID=ffffffff\n'
        'createType="vmfs"\n\n# Extent description\n'
        f'RW {disk.capacity // 512} VMFS "{base.file}"\n\n# The Disk Data Base\n#DDB\n\n'
        f'ddb.adapterType = "lsilogic"\nddb.uuid = "{disk.uuid}"\nddb.virtualHWVersion = "19"\n'
    ).encode()


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Reads a Range header.

    Args:
        header: `bytes=a-b`, `bytes=a-`, `bytes=-n`; None or anything not understood means the whole file.
        size: Bytes of the file.

    Returns:
        The range, None for the whole file.

    Raises:
        FolderError: 416, the range lies behind the end.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        length = min(int(last), size)
        start = size - length
    else:
        start = int(first)
        if last and int(last) < start:
            return None
        length = (min(int(last), size - 1) if last else size - 1) - start + 1
    if start >= size or length <= 0:
        raise FolderError(416, f"The file has {size} bytes")
    return ByteRange(start, length)
