"""A VM's small files in the datastore: its configuration and its firmware's variables, made from its record."""

from __future__ import annotations

from sendense_lab.content import KIB, ByteStream
from sendense_lab.records import VmRecord

NVRAM_BYTES = 264 * KIB


def small_files(record: VmRecord) -> dict[str, bytes]:
    """Returns the VM's .vmx and .nvram by their names."""
    lines = [
        '.encoding = "UTF-8"',
        f'virtualHW.version = "{record.hardware_version}"',
        f'displayName = "{record.name}"',
        'guestOS = "debian12-64"',
        'firmware = "efi"',
        f'nvram = "{record.directory}.nvram"',
        f'memSize = "{record.memory_mb}"',
        f'numvcpus = "{record.cpus}"',
        f'uuid.bios = "{record.uuid}"',
        f'vc.uuid = "{record.instance_uuid}"',
        f'ctkEnabled = "{str(record.tracking_enabled).upper()}"',
    ]
    for disk in record.disks:
        slot = f"scsi{disk.bus}:{disk.unit}"
        lines += [f'{slot}.present = "TRUE"', f'{slot}.fileName = "{record.layers[disk.top].descriptor}"']
    return {
        f"{record.directory}.vmx": ("\n".join(lines) + "\n").encode(),
        f"{record.directory}.nvram": ByteStream("nvram", record.instance_uuid).read(NVRAM_BYTES),
    }
