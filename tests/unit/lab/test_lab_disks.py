"""What a user may ask for when a disk is made, and where it then goes."""

from __future__ import annotations

import pytest

from sendense_lab import diskspec
from sendense_lab.creation import plan_disk
from sendense_lab.diskspec import DiskSpec, Slot
from sendense_lab.errors import InvalidRequestError
from sendense_lab.records import VmRecord

MIB = 1024**2


def vm_with(*texts: str) -> VmRecord:
    record = VmRecord(
        moref="vm-1", name="web", folder="", directory="web", uuid="u", instance_uuid="i", seed=1, disks=(), layers={}
    )
    for text in texts:
        record, _ = plan_disk(record, diskspec.parse_disk(text))
    return record


def test_disks_are_read() -> None:
    assert diskspec.parse_disk("2G:ext4") == DiskSpec(2 * 1024**3, "ext4")
    assert diskspec.parse_disk("512MiB:xfs") == DiskSpec(512 * MIB, "xfs")
    assert diskspec.parse_disk("64M") == DiskSpec(64 * MIB, "ext4")
    assert diskspec.parse_disk("8193K:blank@1:3") == DiskSpec(8193 * 1024, None, 1, 3)
    assert diskspec.parse_disk("8M:blank@2,independent") == DiskSpec(8 * MIB, None, 2, mode="independent_persistent")
    assert diskspec.parse_disk("8M:blank,datastore=fast-2").datastore == "fast-2"
    assert diskspec.parse_disk("8M:blank,rdm").mapping == "physicalMode"
    assert diskspec.parse_disk("8M:blank,rdm-virtual,multi-writer") == DiskSpec(
        8 * MIB, None, mapping="virtualMode", multi_writer=True
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "2G:zfs", "8M:ext4", "64M:xfs", "100000000:ext4", "-2G:ext4", "2G:ext4:x", "63K:blank", "65537:blank"),
        *(
            "8M:blank@4:0",
            "8M:blank@0:7",
            "8M:blank@0:16",
            "8M:blank@",
            "8M:blank,shiny",
            "99999T:blank",
            "8M,",
            "8M:blank,datastore=",
            "8M:blank,datastore=a/b",
        ),
    ],
)
def test_impossible_disks_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        diskspec.parse_disk(text)


def test_the_eighth_disk_skips_the_controllers_unit() -> None:
    disks = vm_with(*["64M:ext4"] * 9).disks
    assert [disk.unit for disk in disks] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert [disk.key for disk in disks] == [2000, 2001, 2002, 2003, 2004, 2005, 2006, 2008, 2009]
    assert [disk.mountpoint for disk in disks][:3] == ["/", "/data", "/data2"]
    assert [disk.label for disk in disks][:2] == ["Hard disk 1", "Hard disk 2"]
    assert [disk.base for disk in disks][:3] == ["web", "web_1", "web_2"]


def test_each_controller_has_keys_of_its_own() -> None:
    record = vm_with("8M:blank@1:3", "8M:blank@3", "8M:blank@1")
    assert [disk.key for disk in record.disks] == [2019, 2048, 2016]
    assert [controller.bus for controller in record.controllers] == [0, 1, 3]
    assert Slot(1, 3).key == 2019


def test_the_first_disk_with_a_file_system_is_the_root() -> None:
    assert [disk.mountpoint for disk in vm_with("8M:blank", "64M", "64M").disks] == ["", "/", "/data"]


def test_a_slot_is_taken_once_and_a_controller_fills_up() -> None:
    with pytest.raises(InvalidRequestError):
        vm_with("8M:blank@0:1", "8M:blank@0:1")
    with pytest.raises(InvalidRequestError):
        vm_with(*["8M:blank"] * 16)
    everything = vm_with(*[f"8M:blank@{bus}" for bus in range(4) for _ in range(15)])
    with pytest.raises(InvalidRequestError):
        plan_disk(everything, diskspec.parse_disk("8M:blank"))
