"""Snapshots freeze, and change tracking names exactly the 64 KiB blocks that differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_rig import BLOCK, Vcenter, areas_of, blocks, differing_blocks, disks
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from sendense_lab.client import LabClient

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def moref(lab: LabClient) -> str:
    return str(lab.create_vm("changes", ["48M:ext4", "304M:xfs"], seed=5, small_files=60)["moref"])


@pytest.fixture
def vm(vcenter: Vcenter, moref: str) -> Any:
    vm = vcenter.vm(moref)
    if not vm.config.changeTrackingEnabled:
        vcenter.enable_tracking(vm)
    return vm


def test_tracking_begins_at_the_stun_after_it_was_enabled(lab: LabClient, vcenter: Vcenter) -> None:
    vm = vcenter.vm(lab.create_vm("fresh", ["16M:ext4"], small_files=5)["moref"])
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    assert vm.config.changeTrackingEnabled
    assert disks(vm.config)[0].backing.changeId is None
    first = vcenter.snapshot(vm, "first")
    assert disks(first.config)[0].backing.changeId is None
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(first, 2000, 0, "any/1")
    vcenter.remove(first)
    second = vcenter.snapshot(vm, "second")
    change_id = disks(second.config)[0].backing.changeId
    assert change_id is not None
    vcenter.remove(second)
    third = vcenter.snapshot(vm, "third")
    uuid, _, sequence = disks(third.config)[0].backing.changeId.rpartition("/")
    assert uuid == change_id.rpartition("/")[0]
    assert int(sequence) > int(change_id.rpartition("/")[2])
    vcenter.remove(third)


def test_a_powered_off_vm_is_tracked_at_once(lab: LabClient, vcenter: Vcenter) -> None:
    vm = vcenter.vm(lab.create_vm("off", ["16M:ext4"], small_files=5)["moref"])
    WaitForTask(vm.PowerOffVM_Task())
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    snapshot = vcenter.snapshot(vm, "first")
    assert disks(snapshot.config)[0].backing.changeId is not None
    vcenter.remove(snapshot)


def test_changed_areas_are_exactly_the_blocks_that_differ(
    lab: LabClient, vcenter: Vcenter, vm: Any, moref: str, exported: Export
) -> None:
    before = vcenter.snapshot(vm, "before")
    ids = {disk.key: disk.backing.changeId for disk in disks(before.config)}
    old = [exported(moref, index, "before") for index in range(2)]
    vcenter.remove(before)
    lab.guest_run(moref, share=0.05, seed=11)
    lab.guest_write(moref, 0, 40 * 1024**2 + 17, seed=3, length=5000)  # inside one block, not aligned
    after = vcenter.snapshot(vm, "after")
    for index, key in enumerate((2000, 2001)):
        new = exported(moref, index, "after")
        named = blocks(areas_of(vm, after, key, ids[key]))
        differing = differing_blocks(old[index], new)
        assert differing
        assert differing <= named
        # A block may be written with what it held before (journals, superblocks), rarely.
        assert len(named - differing) <= 0.1 * len(named) + 8
        control = lab.changed(moref, index, ids[key], snapshot="after")
        assert blocks([(area["offset"], area["length"]) for area in control["areas"]]) == named
        assert control["bytes"] == sum(length for _, length in areas_of(vm, after, key, ids[key]))
    vcenter.remove(after)


def test_pages_of_every_size_give_the_same_areas(lab: LabClient, vcenter: Vcenter, vm: Any, moref: str) -> None:
    before = vcenter.snapshot(vm, "pages-before")
    change_id = disks(before.config)[0].backing.changeId
    vcenter.remove(before)
    for number in range(7):
        lab.guest_write(moref, 0, (500 + 2 * number) * BLOCK, seed=number, length=100)
    after = vcenter.snapshot(vm, "pages-after")
    whole = areas_of(vm, after, 2000, change_id)
    assert len(whole) == 7
    for size in (1, 2, 3, 6, 7, 8):
        lab.set_page_areas(size)
        answer = vm.QueryChangedDiskAreas(after, 2000, 0, change_id)
        assert len(answer.changedArea) == min(size, 7)
        assert areas_of(vm, after, 2000, change_id) == whole
    lab.set_page_areas(None)
    vcenter.remove(after)


def test_queries_that_make_no_sense_are_faults(vcenter: Vcenter, vm: Any) -> None:
    snapshot = vcenter.snapshot(vm, "faults")
    disk = disks(snapshot.config)[0]
    change_id = disk.backing.changeId
    for arguments in (
        (2000, disk.capacityInBytes, change_id),
        (2000, disk.capacityInBytes + 1, "*"),
        (2000, -1, change_id),
        (2999, 0, change_id),
        (2000, 0, "nonsense"),
    ):
        with pytest.raises(vmodl.fault.InvalidArgument):
            vm.QueryChangedDiskAreas(snapshot, *arguments)
    uuid, _, sequence = change_id.rpartition("/")
    for wrong in (f"52 00/{sequence}", f"{uuid}/{int(sequence) + 5}"):
        with pytest.raises(vim.fault.FileFault):
            vm.QueryChangedDiskAreas(snapshot, 2000, 0, wrong)
    vcenter.remove(snapshot)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)


def test_allocated_areas_hold_all_data(vcenter: Vcenter, vm: Any, moref: str, exported: Export) -> None:
    snapshot = vcenter.snapshot(vm, "star")
    content = exported(moref, 1, "star")
    allocated = blocks(areas_of(vm, snapshot, 2001, "*"))
    with content.open("rb") as file:
        number = 0
        while block := file.read(BLOCK):
            if number not in allocated:
                assert not any(block)
            number += 1
    assert 0 < len(allocated) < number
    vcenter.remove(snapshot)


def test_what_the_guest_writes_later_is_not_in_the_snapshot(
    lab: LabClient, vcenter: Vcenter, vm: Any, moref: str, exported: Export, tmp_path: Path
) -> None:
    snapshot = vcenter.snapshot(vm, "frozen")
    frozen = exported(moref, 0, "frozen")
    page = tmp_path / "page"
    page.write_text("later")
    lab.guest_put(moref, page, "/var/www/html/later.html")
    lab.guest_write(moref, 0, 45 * 1024**2, seed=1, length=BLOCK)
    assert differing_blocks(frozen, exported(moref, 0, "frozen")) == set()
    assert differing_blocks(frozen, exported(moref, 0))
    now = exported(moref, 0)
    vcenter.remove(snapshot)
    # Consolidation kept what the guest wrote, and the kept content is still that of the snapshot.
    assert differing_blocks(now, exported(moref, 0)) == set()
    lab.guest_run(moref, share=0.1, seed=4)
    assert differing_blocks(frozen, exported(moref, 0, snapshot._GetMoId())) == set()


def test_kept_snapshots_stay_right_while_later_ones_come_and_go(
    lab: LabClient, vcenter: Vcenter, vm: Any, moref: str, exported: Export
) -> None:
    contents = {}
    for number in range(3):
        name = f"kept-{number}"
        snapshot = vcenter.snapshot(vm, name)
        contents[name] = exported(moref, 0, name)
        lab.guest_write(moref, 0, 44 * 1024**2 + number * 3000, seed=number, length=10_000)
        if number == 1:  # a second, deeper snapshot: its layer is a delta and is copied whole
            deeper = vcenter.snapshot(vm, "deeper")
            contents["deeper"] = exported(moref, 0, "deeper")
            lab.guest_write(moref, 0, 43 * 1024**2, seed=9, length=BLOCK)
            vcenter.remove(deeper)
        vcenter.remove(snapshot)
        lab.guest_write(moref, 0, 42 * 1024**2, seed=number, length=2 * BLOCK)
    listed = {found["name"]: found for found in lab.snapshots(moref)}
    for name, content in contents.items():
        assert listed[name]["kept"]
        assert listed[name]["disks"][0]["change_id"]
        assert differing_blocks(content, exported(moref, 0, name)) == set()
