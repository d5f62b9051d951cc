"""A change tracking that resets, fails, lies, and answers what cannot be (the guards of cbt-facts 1 to 4)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from lab_rig import BLOCK, Vcenter, areas_of, blocks, disks
from pyVmomi import vim, vmodl

from sendense_lab.client import LabClient

names = (f"cbt-{number}" for number in itertools.count())
SIZE = 64 * BLOCK


@pytest.fixture
def vm(lab: LabClient, vcenter: Vcenter) -> Any:
    """A tracked VM with two disks of 64 blocks."""
    vm = vcenter.vm(lab.create_vm(next(names), ["4M:blank", "4M:blank@1"])["moref"])
    vcenter.enable_tracking(vm)
    yield vm
    lab.clear_faults()


@pytest.fixture
def asked(lab: LabClient, vcenter: Vcenter, vm: Any) -> tuple[Any, str, set[int]]:
    """A snapshot, the change id before it, and the blocks of the first disk changed since."""
    before = vcenter.snapshot(vm, "before")
    change_id = disks(before.config)[0].backing.changeId
    vcenter.remove(before)
    written = {1, 2, 3, 10, 20, 21, 40}
    for block in written:
        lab.guest_write(vm.name, 0, block * BLOCK, seed=block, length=BLOCK)
    return vcenter.snapshot(vm, "after"), change_id, written


def test_a_reset_gives_a_disk_another_uuid(lab: LabClient, vcenter: Vcenter, vm: Any, asked: Any) -> None:
    _, change_id, _ = asked
    others = disks(vm.config)[1].backing.changeId
    assert lab.reset_tracking(vm.name, 0)["disks"] == [0]
    after = vcenter.snapshot(vm, "reset")
    first, second = (disk.backing.changeId for disk in disks(after.config))
    assert first.rpartition("/")[0] != change_id.rpartition("/")[0]
    assert second.rpartition("/")[0] == others.rpartition("/")[0]
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(after, 2000, 0, change_id)
    assert lab.reset_tracking(vm.name)["disks"] == [0, 1]


def test_an_empty_change_id_is_in_the_next_snapshot_only(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    lab.set_fault("cbt-empty-id", vm=vm.name, disk=1)
    ids = []
    for _ in range(2):
        snapshot = vcenter.snapshot(vm, "s")
        ids.append([disk.backing.changeId for disk in disks(snapshot.config)])
        vcenter.remove(snapshot)
    assert [bool(found) for found in ids[0]] == [True, False]
    assert [bool(found) for found in ids[1]] == [True, True]


@pytest.mark.parametrize(
    ("error", "expected"), [("FileFault", vim.fault.FileFault), ("InvalidArgument", vmodl.fault.InvalidArgument)]
)
def test_a_query_can_fail(lab: LabClient, vm: Any, asked: Any, error: str, expected: Any) -> None:
    snapshot, change_id, written = asked
    lab.set_fault("cbt-error", error=error, vm=vm.name, disk=0, after=1)
    vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)
    vm.QueryChangedDiskAreas(snapshot, 2016, 0, "*")  # the other disk
    with pytest.raises(expected):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)
    assert blocks(areas_of(vm, snapshot, 2000, change_id)) == written


def test_allocated_areas_can_fail_alone(lab: LabClient, vm: Any, asked: Any) -> None:
    snapshot, change_id, written = asked
    with lab.fault("cbt-error", query="allocated", times=None):
        assert blocks(areas_of(vm, snapshot, 2000, change_id)) == written
        with pytest.raises(vim.fault.FileFault):
            vm.QueryChangedDiskAreas(snapshot, 2000, 0, "*")


@pytest.mark.parametrize("page", [1, 2, 2000])
@pytest.mark.parametrize("seed", range(4))
def test_a_lie_hides_one_block_from_all_pages_alike(lab: LabClient, vm: Any, asked: Any, page: int, seed: int) -> None:
    snapshot, change_id, written = asked
    lab.set_page_areas(page)
    with lab.fault("cbt-lie", vm=vm.name, disk=0, seed=seed) as fault:
        told = blocks(areas_of(vm, snapshot, 2000, change_id))
        assert told < written
        (hidden,) = written - told
        assert blocks(areas_of(vm, snapshot, 2000, change_id)) == told
        (listed,) = [found for found in lab.faults() if found["id"] == fault["id"]]
        assert f"hid {BLOCK} bytes at {hidden * BLOCK}" in listed["last"]
        truth = lab.changed(vm.name, 0, change_id, snapshot=snapshot._GetMoId())
        assert blocks([(area["offset"], area["length"]) for area in truth["areas"]]) == written
    lab.set_page_areas(None)
    assert blocks(areas_of(vm, snapshot, 2000, change_id)) == written


def test_a_lie_can_hide_a_whole_area(lab: LabClient, vm: Any, asked: Any) -> None:
    snapshot, change_id, written = asked
    whole = [{1, 2, 3}, {10}, {20, 21}, {40}]
    hidden = []
    for seed in range(8):
        with lab.fault("cbt-lie", blocks=0, seed=seed):
            hidden.append(written - blocks(areas_of(vm, snapshot, 2000, change_id)))
    assert all(found in whole for found in hidden)
    assert len({min(found) for found in hidden}) > 1


def test_answers_that_cannot_be_are_given_once(lab: LabClient, vm: Any, asked: Any) -> None:
    snapshot, change_id, written = asked
    lab.set_page_areas(2)
    for kind, start, length in (
        ("cbt-zero-length", 0, 0),
        ("cbt-wrong-start", BLOCK, None),
        ("cbt-past-end", 0, SIZE + BLOCK),
    ):
        lab.set_fault(kind)
        answer = vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)
        assert answer.startOffset == start
        assert length is None or answer.length == length
        assert blocks(areas_of(vm, snapshot, 2000, change_id)) == written
    lab.set_page_areas(None)


def test_pages_can_be_small_for_one_vm(lab: LabClient, vm: Any, asked: Any) -> None:
    snapshot, change_id, written = asked
    with lab.fault("cbt-page-areas", areas=1, vm=vm.name, disk=1):
        assert len(vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id).changedArea) == 4
    with lab.fault("cbt-page-areas", areas=1, vm=vm.name, disk=0):
        assert len(vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id).changedArea) == 1
        assert blocks(areas_of(vm, snapshot, 2000, change_id)) == written


def test_zeros_that_are_written_are_changes(lab: LabClient, vcenter: Vcenter, vm: Any, asked: Any) -> None:
    _, _, _ = asked
    before = vcenter.snapshot(vm, "zeros-before")
    change_id = disks(before.config)[0].backing.changeId
    lab.guest_write(vm.name, 0, 20 * BLOCK + 5, length=100, zero=True)
    after = vcenter.snapshot(vm, "zeros")
    assert blocks(areas_of(vm, after, 2000, change_id)) == {20}
