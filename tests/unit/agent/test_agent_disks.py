"""Which disks a snapshot holds, told from vSphere's own data objects (cbt-facts 7 and 11)."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from sendense_agent.disks import disks_of

device = vim.vm.device
GIB = 1 << 30


def controller(key: int = 1000, shared: str = "noSharing") -> Any:
    return device.ParaVirtualSCSIController(key=key, busNumber=0, sharedBus=shared)


def disk(key: int, backing: Any, controller_key: int = 1000) -> Any:
    return device.VirtualDisk(
        key=key,
        backing=backing,
        controllerKey=controller_key,
        unitNumber=0,
        capacityInKB=GIB // 1024,
        capacityInBytes=GIB,
        deviceInfo=vim.Description(label=f"Hard disk {key}", summary=""),
    )


def flat(uuid: str = "u1", **facts: Any) -> Any:
    facts.setdefault("diskMode", "persistent")
    return device.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] vm/vm.vmdk", uuid=uuid, **facts)


def test_identity_is_uuid_and_key_whatever_the_order() -> None:
    one, two = disk(2000, flat("u1")), disk(2016, flat("u2", changeId="52/3"), 1001)
    first = disks_of([controller(), controller(1001), one, two])
    assert first == disks_of([two, controller(1001), one, controller()])
    assert [(each.identity, each.change_id, each.capacity_bytes) for each in first] == [
        ("u1/2000", "", GIB),
        ("u2/2016", "52/3", GIB),
    ]


def raw(mode: str) -> Any:
    return device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[ds] vm/rdm.vmdk", uuid="u1", compatibilityMode=mode, diskMode="persistent"
    )


@pytest.mark.parametrize(
    ("backing", "shared", "reason"),
    [
        (flat(), "noSharing", ""),
        (flat(diskMode="independent_persistent"), "noSharing", "independent disk"),
        (flat(diskMode="independent_nonpersistent"), "noSharing", "independent disk"),
        (raw("physicalMode"), "noSharing", "physical raw device mapping"),
        (raw("virtualMode"), "noSharing", ""),
        (flat(sharing="sharingMultiWriter"), "noSharing", "disk shared by several writers"),
        (flat(), "physicalSharing", "disk on a shared bus"),
        (flat(), "virtualSharing", "disk on a shared bus"),
    ],
)
def test_fact_11_disks_that_no_snapshot_holds_say_why(backing: Any, shared: str, reason: str) -> None:
    (found,) = disks_of([controller(shared=shared), disk(2000, backing)])
    assert found.skip_reason == reason


def test_a_backing_on_top_of_another_is_a_delta() -> None:
    (found,) = disks_of([controller(), disk(2000, flat(parent=flat()))])
    assert found.is_delta
