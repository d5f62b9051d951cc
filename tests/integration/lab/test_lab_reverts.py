"""Reverts, their trap in change tracking (cbt-facts 10a), and the event log that shows them."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_rig import BLOCK, Vcenter, areas_of, blocks, differing_blocks, disks
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError

Export = Callable[..., Path]
REVERTED = "com.vmware.vc.vm.VmStateRevertedToSnapshot"
names = (f"rev-{number}" for number in itertools.count())


@pytest.fixture
def made(lab: LabClient, vcenter: Vcenter) -> tuple[str, Any]:
    """A tracked VM with a disk of 16 blocks; its name and the client's object."""
    name = next(names)
    vm = vcenter.vm(lab.create_vm(name, ["1M:blank"])["moref"])
    vcenter.enable_tracking(vm)
    return name, vm


def write_block(lab: LabClient, name: str, block: int, seed: int = 1) -> None:
    lab.guest_write(name, 0, block * BLOCK, seed=seed, length=BLOCK)


def tree(nodes: Any) -> Any:
    return [(node.name, tree(node.childSnapshotList)) for node in nodes]


def test_a_revert_brings_content_and_hardware_back_and_switches_off(
    lab: LabClient, vcenter: Vcenter, made: tuple[str, Any], exported: Export
) -> None:
    name, vm = made
    write_block(lab, name, 1)
    snapshot = vcenter.snapshot(vm, "good")
    content = exported(name, 0).read_bytes()
    write_block(lab, name, 2)
    lab.add_disk(name, "1M:blank@1")
    lab.move_disk(name, 0, to="0:3")
    WaitForTask(snapshot.RevertToSnapshot_Task())
    assert vm.runtime.powerState == "poweredOff"
    assert [d.key for d in disks(vm.config)] == [2000]
    assert exported(name, 0).read_bytes() == content
    with pytest.raises(LabError):
        write_block(lab, name, 3)
    WaitForTask(vm.PowerOnVM_Task())
    write_block(lab, name, 3)
    assert exported(name, 0).read_bytes() != content
    WaitForTask(vm.RevertToCurrentSnapshot_Task())
    assert exported(name, 0).read_bytes() == content
    vcenter.remove(snapshot)
    with pytest.raises(vim.fault.NotFound):
        WaitForTask(vm.RevertToCurrentSnapshot_Task())


def test_snapshots_become_a_tree(lab: LabClient, vcenter: Vcenter, made: tuple[str, Any], exported: Export) -> None:
    name, vm = made
    contents = {}
    for number, (snapshot, back_to) in enumerate((("a", ""), ("b", "a"), ("c", "b"), ("d", ""))):
        write_block(lab, name, number, seed=number)
        lab.create_snapshot(name, snapshot)
        contents[snapshot] = exported(name, 0, snapshot).read_bytes()
        if back_to:
            lab.revert_snapshot(name, back_to, power_on=True)
    # a was the root; b on it; back to a: c; back to b: d.
    assert tree(vm.snapshot.rootSnapshotList) == [("a", [("b", [("d", [])]), ("c", [])])]
    assert vm.snapshot.currentSnapshot.config.name == name
    for snapshot, content in contents.items():
        assert exported(name, 0, snapshot).read_bytes() == content
    lab.remove_snapshot(name, "b")  # a has two children now: d and c
    assert tree(vm.snapshot.rootSnapshotList) == [("a", [("c", []), ("d", [])])]
    lab.remove_snapshot(name, "a", children=True)
    assert vm.snapshot is None
    assert not vm.runtime.consolidationNeeded
    assert exported(name, 0).read_bytes() == contents["d"]
    for snapshot, content in contents.items():  # kept
        assert exported(name, 0, snapshot).read_bytes() == content


def test_the_query_after_a_revert_answers_and_leaves_out_what_the_revert_undid(
    lab: LabClient, vcenter: Vcenter, made: tuple[str, Any], exported: Export
) -> None:
    """Facts 10a: whoever trusts this answer stores a wrong increment."""
    name, vm = made
    lab.create_snapshot(name, "foreign")
    write_block(lab, name, 5)
    parent = vcenter.snapshot(vm, "parent")  # a backup
    change_id = disks(parent.config)[0].backing.changeId
    old = exported(name, 0, "parent")
    vcenter.remove(parent)
    lab.revert_snapshot(name, "foreign", power_on=True)
    write_block(lab, name, 9)
    now = vcenter.snapshot(vm, "now")
    assert disks(now.config)[0].backing.changeId.rpartition("/")[0] == change_id.rpartition("/")[0]
    named = blocks(areas_of(vm, now, 2000, change_id))
    assert named == {9}
    assert differing_blocks(old, exported(name, 0, "now")) == {5, 9}
    vcenter.remove(now)


def test_a_snapshot_on_another_branch_cannot_be_asked(lab: LabClient, vcenter: Vcenter, made: tuple[str, Any]) -> None:
    _, vm = made
    base = vcenter.snapshot(vm, "base")
    branch = vcenter.snapshot(vm, "branch")
    change_id = disks(base.config)[0].backing.changeId
    assert vm.QueryChangedDiskAreas(branch, 2000, 0, change_id).length == 16 * BLOCK
    WaitForTask(base.RevertToSnapshot_Task())
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(branch, 2000, 0, change_id)
    WaitForTask(vm.RemoveAllSnapshots_Task())


def test_a_line_of_snapshots_has_the_depth_that_vmware_allows(lab: LabClient, made: tuple[str, Any]) -> None:
    name, _ = made
    for number in range(32):
        lab.create_snapshot(name, f"s{number}")
    with pytest.raises(LabError):
        lab.create_snapshot(name, "one too many")
    assert lab.vm(name)["snapshots"] == 32
    assert lab.remove_snapshot(name)["left"] == 0


def kinds_of(events: Any) -> list[str]:
    return [
        event.eventTypeId
        if isinstance(event, vim.event.EventEx)
        else event.info.descriptionId
        if isinstance(event, vim.event.TaskEvent)
        else type(event).__name__.rpartition(".")[2]
        for event in events
    ]


def test_events_say_what_happened_to_a_vm_in_order(lab: LabClient, vcenter: Vcenter, made: tuple[str, Any]) -> None:
    name, vm = made
    manager = vcenter.content.eventManager
    by_entity = vim.event.EventFilterSpec.ByEntity(entity=vm, recursion="self")
    lab.create_snapshot(name, "good")
    since = vcenter.si.CurrentTime()
    lab.revert_snapshot(name, "good", power_on=True)
    lab.add_disk(name, "1M:blank")
    lab.remove_snapshot(name)
    lab.create_vm(next(names), ["1M:blank"])  # another VM's events are not ours
    everything = manager.QueryEvents(vim.event.EventFilterSpec(entity=by_entity))
    assert kinds_of(everything)[:2] == ["VmCreatedEvent", "VmReconfiguredEvent"]
    assert all(event.vm.vm == vm for event in everything)
    later = vim.event.EventFilterSpec(entity=by_entity, time=vim.event.EventFilterSpec.ByTime(beginTime=since))
    assert kinds_of(manager.QueryEvents(later)) == [
        REVERTED,
        "VmPoweredOnEvent",
        "VmReconfiguredEvent",
        "vm.Snapshot.remove",
    ]
    for chosen in ([REVERTED], ["EventEx"], ["vim.event.EventEx"]):
        spec = vim.event.EventFilterSpec(entity=by_entity, eventTypeId=chosen)
        (revert,) = manager.QueryEvents(spec)
        assert "reverted to the state of snapshot good" in revert.fullFormattedMessage
        assert revert.createdTime >= since
    spec = vim.event.EventFilterSpec(entity=by_entity, type=[vim.event.VmReconfiguredEvent], maxCount=1)
    (reconfigured,) = manager.QueryEvents(spec)
    assert reconfigured.createdTime > revert.createdTime  # the newest
    spec = vim.event.EventFilterSpec(time=vim.event.EventFilterSpec.ByTime(endTime=since - dt.timedelta(days=1)))
    assert manager.QueryEvents(spec) == []


def test_an_event_collector_reads_page_by_page(lab: LabClient, vcenter: Vcenter, made: tuple[str, Any]) -> None:
    name, vm = made
    for number in range(5):
        lab.set_vm(name, hardware_version=10 + number)
    folder = vim.event.EventFilterSpec.ByEntity(entity=vcenter.content.rootFolder, recursion="all")
    spec = vim.event.EventFilterSpec(entity=folder, eventTypeId=["VmReconfiguredEvent"])
    collector = vcenter.content.eventManager.CreateCollectorForEvents(spec)
    pages = list(iter(lambda: collector.ReadNextEvents(2), []))
    found = [event for page in pages for event in page]
    assert all(len(page) <= 2 for page in pages)
    assert len([event for event in found if event.vm.vm == vm]) == 6
    assert [event.key for event in found] == sorted(event.key for event in found)
    collector.RewindCollector()
    assert collector.ReadNextEvents(1000)[0].key == found[0].key
    collector.DestroyCollector()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        collector.ReadNextEvents(1)


def test_events_are_under_the_id_that_a_vm_had_and_can_be_forgotten(
    lab: LabClient, vcenter: Vcenter, made: tuple[str, Any]
) -> None:
    name, _ = made
    assert len(lab.events(name)) > 1
    lab.register_again(name)
    assert [event["kind"] for event in lab.events(name)] == ["VmRegisteredEvent"]
    assert lab.forget_events()["events"] > 1
    assert vcenter.content.eventManager.QueryEvents(vim.event.EventFilterSpec()) == []
    lab.set_vm(name, tools="notRunning")
    assert [event["kind"] for event in lab.events(name)] == ["VmReconfiguredEvent"]
