"""A volume: a file system, or what else a partition holds, on a disk of a restore point."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Volume:
    """What was found on one partition, or on a disk without partitions.

    Attributes:
        disk_id: Number of the disk.
        partition: Number of the partition; 0 for a disk without partitions.
        offset_bytes: Where it begins on the disk.
        size_bytes: How long it is.
        file_system: blkid's word, such as `ext4` or `LVM2_member`; empty when nothing was recognised.
        usage: blkid's word for its kind, such as `filesystem`, `raid`, `crypto`, `other`.
        label: Label of the file system.
        uuid: Uuid of the file system.
        part_uuid: Uuid of the partition.
        part_label: Name of the partition in the table.
        guest_path: Where it is in the guest's tree; empty when it is not in it.
        error: Why it is not mounted; empty when it is.
        own_name: Name of a volume that is made of others (a logical volume, an array, an unlocked one); such a one has
            the number of the first disk, no partition and no offset.
        device: What the guest calls such a volume, such as `/dev/vg0/root`.
    """

    disk_id: int
    partition: int
    offset_bytes: int
    size_bytes: int
    file_system: str = ""
    usage: str = ""
    label: str = ""
    uuid: str = ""
    part_uuid: str = ""
    part_label: str = ""
    guest_path: str = ""
    error: str = ""
    own_name: str = ""
    device: str = ""

    @property
    def name(self) -> str:
        """`disk-0-part-1`, `disk-0` for a disk without partitions, or `lv-vg0-root` and the like."""
        return self.own_name or f"disk-{self.disk_id}" + (f"-part-{self.partition}" if self.partition else "")
