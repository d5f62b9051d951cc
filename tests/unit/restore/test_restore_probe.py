"""What sfdisk, blkid and the kernel's mount table say is read rightly."""

from __future__ import annotations

import json
from pathlib import Path

from sendense_restore.exported_disks import overlay_cluster_size
from sendense_restore.mount_table import parse_mount
from sendense_restore.probe import parse_partitions, parse_signature


def test_containers_of_logical_partitions_are_no_volumes() -> None:
    rows = [
        {"node": "/x/disk-0.raw1", "start": 2048, "size": 10, "type": "83"},
        {"node": "/x/disk-0.raw2", "start": 4096, "size": 99, "type": "5"},
        {"node": "/x/disk-0.raw11", "start": 8192, "size": 20, "type": "8e"},
    ]
    table = {"label": "dos", "id": "0xe1f87d05", "sectorsize": 512, "partitions": rows}
    found = parse_partitions(json.dumps({"partitiontable": table}).encode())
    assert [(p.number, p.offset_bytes, p.size_bytes, p.uuid) for p in found] == [
        (1, 2048 * 512, 5120, "e1f87d05-01"),
        (11, 8192 * 512, 10240, "e1f87d05-0b"),
    ]


def test_a_label_of_odd_characters_is_decoded_once() -> None:
    text = (
        b"ID_FS_LABEL=a_b\nID_FS_LABEL_ENC=a\\x20b\\x5cx41\nID_FS_UUID_ENC=u\nID_FS_TYPE=ext4\nID_FS_USAGE=filesystem\n"
    )
    signature = parse_signature(text)
    assert (signature.label, signature.file_system, signature.usage) == ("a b\\x41", "ext4", "filesystem")


def test_mount_points_with_blanks_are_read() -> None:
    line = "62 27 0:40 / /mnt/my\\040data ro,nosuid shared:5 master:1 - fuse.x /dev/loop\\0407 rw"
    entry = parse_mount(line)
    assert (entry.path, entry.file_system, entry.source) == (Path("/mnt/my data"), "fuse.x", "/dev/loop 7")
    assert entry.options == {"ro", "nosuid"}


def test_overlays_of_huge_disks_fit_qemus_tables() -> None:
    for size in (1 << 30, 8 << 40, (8 << 40) + 512, 62 << 40, 128 << 40):
        cluster = overlay_cluster_size(size)
        assert size / (cluster * cluster // 8) * 8 <= 32 << 20
    assert overlay_cluster_size(8 << 40) == 4096
