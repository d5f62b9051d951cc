"""VMs of every shape, as the real client sees them: slots, identities, disks that snapshots leave out, odd VMs."""

from __future__ import annotations

import http.client
import itertools
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_rig import BLOCK, Vcenter, disks
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError

Export = Callable[..., Path]
MIB = 1024**2
names = (f"hw-{number}" for number in itertools.count())


@pytest.fixture
def made(lab: LabClient, vcenter: Vcenter) -> Callable[..., tuple[str, Any]]:
    """Makes a VM of a shape; returns its name and the client's object."""

    def make(*shape: str, tracked: bool = False, **options: Any) -> tuple[str, Any]:
        name = next(names)
        vm = vcenter.vm(lab.create_vm(name, list(shape), small_files=5, diskless=not shape, **options)["moref"])
        if tracked:
            vcenter.enable_tracking(vm)
        return name, vm

    return make


def controllers(config: Any) -> dict[int, Any]:
    return {d.busNumber: d for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController)}


def test_disks_are_on_the_controllers_that_were_asked_for(made: Any) -> None:
    _, vm = made("1M:blank", "2M:blank@1:3", "3M:blank@0:8")
    assert [(d.key, d.controllerKey, d.unitNumber, d.capacityInBytes // MIB) for d in disks(vm.config)] == [
        (2000, 1000, 0, 1),
        (2019, 1001, 3, 2),
        (2008, 1000, 8, 3),
    ]
    assert {bus: list(found.device) for bus, found in controllers(vm.config).items()} == {0: [2000, 2008], 1: [2019]}


def test_a_disk_that_is_added_and_removed_is_seen_at_once(lab: LabClient, made: Any) -> None:
    name, vm = made("1M:blank", tracked=True)
    added = lab.add_disk(name, "2M:blank@1")
    assert [(d.key, d.backing.uuid) for d in disks(vm.config)][1] == (2016, added["uuid"])
    assert disks(vm.config)[1].backing.changeId  # a tracked VM's new disk is tracked from its first byte
    lab.remove_disk(name, 2000)
    assert [d.key for d in disks(vm.config)] == [2016]
    lab.remove_disk(name, added["uuid"])
    assert disks(vm.config) == []
    with pytest.raises(LabError):
        lab.remove_disk(name, 0)


def test_a_disk_of_a_snapshot_outlives_its_removal_from_the_vm(
    lab: LabClient, vcenter: Vcenter, made: Any, exported: Export
) -> None:
    name, vm = made("1M:blank", "1M:blank", tracked=True)
    lab.guest_write(name, 1, 5, seed=1, length=1000)
    snapshot = vcenter.snapshot(vm, "before")
    content = exported(name, 2001, "before").read_bytes()
    assert any(content)
    old = lab.remove_disk(name, 1)
    fresh = lab.add_disk(name, "1M:blank")
    assert fresh["key"] == old["key"]
    assert fresh["uuid"] != old["uuid"]
    lab.guest_write(name, 1, 0, seed=2, length=MIB)
    assert [d.backing.uuid for d in disks(snapshot.config)][1] == old["uuid"]
    assert disks(snapshot.config)[1].backing.fileName != disks(vm.config)[1].backing.fileName
    assert exported(name, 2001, "before").read_bytes() == content
    vcenter.remove(snapshot)
    assert exported(name, 2001, "before").read_bytes() == content  # kept, though its files went
    with pytest.raises(LabError):
        exported(name, 1, "before")  # an index counts the disks of now


def test_a_recreated_disk_has_the_slot_and_file_of_the_old_one_but_another_uuid(
    lab: LabClient, vcenter: Vcenter, made: Any
) -> None:
    name, vm = made("1M:blank", "1M:blank", tracked=True)
    lab.guest_write(name, 0, 0, seed=1, length=10)
    old = disks(vm.config)[0]
    lab.recreate_disk(name, 0, size="2M")
    new = disks(vm.config)[0]
    assert (new.key, new.backing.fileName) == (old.key, old.backing.fileName)
    assert new.backing.uuid != old.backing.uuid
    assert new.capacityInBytes == 2 * MIB
    assert new.backing.changeId.rpartition("/")[0] != old.backing.changeId.rpartition("/")[0]
    snapshot = vcenter.snapshot(vm, "s")
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, old.backing.changeId)
    vcenter.remove(snapshot)


def test_a_moved_disk_keeps_uuid_content_and_tracking_under_another_key(
    lab: LabClient, vcenter: Vcenter, made: Any, exported: Export
) -> None:
    name, vm = made("1M:blank", "1M:blank", tracked=True)
    lab.guest_write(name, 0, 0, seed=1, length=10)
    before = {d.backing.uuid: (d.key, d.backing.changeId) for d in disks(vm.config)}
    first, second = before
    content = exported(name, first).read_bytes()
    lab.move_disk(name, first, to="1:5")
    assert {d.backing.uuid: d.key for d in disks(vm.config)} == {first: 2021, second: 2001}
    lab.move_disk(name, first, to="0:1")  # where the other is: they change places
    assert {d.backing.uuid: d.key for d in disks(vm.config)} == {first: 2001, second: 2021}
    lab.move_disk(name, first, position=1)
    assert [d.backing.uuid for d in disks(vm.config)] == [second, first]
    assert {d.backing.uuid: d.backing.changeId for d in disks(vm.config)} == {u: c for u, (_, c) in before.items()}
    assert exported(name, first).read_bytes() == content
    snapshot = vcenter.snapshot(vm, "s")
    assert vm.QueryChangedDiskAreas(snapshot, 2001, 0, before[first][1]).startOffset == 0
    vcenter.remove(snapshot)


@pytest.mark.parametrize("reset", [False, True])
def test_a_grown_disk_reads_as_zeros_behind_its_old_end(
    lab: LabClient, vcenter: Vcenter, made: Any, exported: Export, reset: bool
) -> None:
    name, vm = made("1M:blank", tracked=True)
    lab.guest_write(name, 0, 0, seed=1, length=MIB)
    old = exported(name, 0).read_bytes()
    change_id = disks(vm.config)[0].backing.changeId
    snapshot = lab.create_snapshot(name, "s")
    with pytest.raises(LabError):
        lab.resize_disk(name, 0, "2M")
    lab.remove_snapshot(name, snapshot["moref"])
    change_id = disks(vm.config)[0].backing.changeId
    for too_small in ("1M", "512K"):
        with pytest.raises(LabError):
            lab.resize_disk(name, 0, too_small)
    lab.resize_disk(name, 0, "2M", tracking="reset" if reset else "keep")
    disk = disks(vm.config)[0]
    assert disk.capacityInBytes == 2 * MIB
    assert (disk.backing.changeId.rpartition("/")[0] != change_id.rpartition("/")[0]) == reset
    assert exported(name, 0).read_bytes() == old + bytes(MIB)
    assert exported(name, 0, "s").read_bytes() == old  # the removed snapshot keeps its size
    if not reset:  # the trap of facts 7: the old change id gets an answer
        now = vcenter.snapshot(vm, "now")
        assert vm.QueryChangedDiskAreas(now, 2000, 0, change_id).length == 2 * MIB
        vcenter.remove(now)


def test_independent_disks_and_physical_mappings_are_in_no_snapshot(
    lab: LabClient, vcenter: Vcenter, made: Any, exported: Export
) -> None:
    name, vm = made(
        "1M:blank",
        "1M:blank,independent",
        "1M:blank,nonpersistent",
        "1M:blank,rdm",
        "1M:blank,rdm-virtual",
        tracked=True,
    )
    backings = [d.backing for d in disks(vm.config)]
    assert [b.diskMode for b in backings] == [
        *("persistent", "independent_persistent", "independent_nonpersistent", "persistent", "persistent"),
    ]
    assert [getattr(b, "compatibilityMode", None) for b in backings][3:] == ["physicalMode", "virtualMode"]
    assert [bool(b.changeId) for b in backings] == [True, False, False, False, True]
    snapshot = vcenter.snapshot(vm, "s")
    for index in range(5):
        lab.guest_write(name, index, 0, seed=index, length=10)
    frozen = [d.backing for d in disks(snapshot.config)]
    now = [d.backing for d in disks(vm.config)]
    assert [f.fileName == n.fileName for f, n in zip(frozen, now, strict=True)] == [False, True, True, True, False]
    assert [bool(n.parent) for n in now] == [True, False, False, False, True]
    assert [bool(f.changeId) for f in frozen] == [True, False, False, False, True]
    assert not any(exported(name, 0, "s").read_bytes())
    vcenter.remove(snapshot)


def test_a_shared_bus_or_disk_allows_no_snapshot_and_has_no_tracking(
    lab: LabClient, vcenter: Vcenter, made: Any
) -> None:
    name, vm = made("1M:blank", "1M:blank@1", tracked=True)
    lab.share_bus(name, 1, "physical")
    assert [found.sharedBus for found in controllers(vm.config).values()] == ["noSharing", "physicalSharing"]
    with pytest.raises(vim.fault.SnapshotIncompatibleDeviceInVm):
        vcenter.snapshot(vm, "s")
    lab.power_off(name)
    assert [bool(d.backing.changeId) for d in disks(vm.config)] == [True, False]
    lab.share_bus(name, 1, "none")
    vcenter.remove(vcenter.snapshot(vm, "s"))
    _, shared = made("1M:blank,multi-writer")
    assert disks(shared.config)[0].backing.sharing == "sharingMultiWriter"
    with pytest.raises(vim.fault.SnapshotIncompatibleDeviceInVm):
        vcenter.snapshot(shared, "s")


def test_disks_and_vms_may_be_in_several_places(lab: LabClient, vcenter: Vcenter, made: Any) -> None:
    name, vm = made("1M:blank", "1M:blank,datastore=second")
    assert [d.backing.fileName for d in disks(vm.config)] == [
        f"[labstore] {name}/{name}.vmdk",
        f"[second] {name}/{name}_1.vmdk",
    ]
    assert [d.backing.datastore.name for d in disks(vm.config)] == ["labstore", "second"]
    assert [place.name for place in vm.datastore] == ["labstore", "second"]
    assert vm in vm.datastore[1].vm
    datacenter = vcenter.content.rootFolder.childEntity[0]
    assert [place.name for place in datacenter.datastore] == ["labstore", "second"]
    with lab.fault("datastore-free", bytes=0, datastore="second"):
        assert [place.summary.freeSpace > 0 for place in vm.datastore] == [True, False]
        with pytest.raises(vim.fault.NoDiskSpace) as full:
            vcenter.snapshot(vm, "s")
        assert full.value.datastore == "second"
        _, other = made("1M:blank")
        vcenter.remove(vcenter.snapshot(other, "s"))
    lab.recreate_disk(name, 1)
    assert disks(vm.config)[1].backing.datastore.name == "second"
    lab.power_off(name)
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)
    for place, expected in (("second", 200), ("labstore", 404), ("third", 404)):
        path = f"/folder/{name}/{name}_1-flat.vmdk?dcPath=lab&dsName={place}"
        connection.request("HEAD", path, headers={"Cookie": vcenter.cookie})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == expected
    connection.close()
    lab.set_vm(name, host="other-host.local")
    assert vm.runtime.host.name == "other-host.local"
    assert vm.runtime.host.vm == [vm]
    assert {found.name for found in datacenter.hostFolder.childEntity[0].host} == {"lab-host.local", "other-host.local"}


def test_a_vm_may_have_no_disk(vcenter: Vcenter, made: Any) -> None:
    _, vm = made()
    assert disks(vm.config) == []
    vcenter.remove(vcenter.snapshot(vm, "s"))


def test_old_hardware_and_odd_vms_have_no_tracking(lab: LabClient, made: Any) -> None:
    name, old = made("1M:blank", hardware_version=4)
    assert old.config.version == "vmx-04"
    other, vm = made("1M:blank")
    lab.set_vm(other, tracking_supported=False)
    for each in (old, vm):
        assert not each.capability.changeTrackingSupported
        with pytest.raises(vmodl.fault.NotSupported):
            WaitForTask(each.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    lab.set_vm(name, hardware_version=21)
    assert old.capability.changeTrackingSupported


def test_a_template_is_off_and_takes_no_snapshot(lab: LabClient, vcenter: Vcenter, made: Any) -> None:
    name, vm = made("1M:blank")
    lab.set_vm(name, template=True)
    assert vm.config.template
    assert vm.runtime.powerState == "poweredOff"
    with pytest.raises(vmodl.fault.NotSupported):
        vcenter.snapshot(vm, "s")
    with pytest.raises(vmodl.fault.NotSupported):
        WaitForTask(vm.PowerOnVM_Task())
    with pytest.raises(LabError):
        lab.power_on(name)
    lab.set_vm(name, template=False)
    lab.power_on(name)


def test_a_lost_vm_has_a_name_and_nothing_else(lab: LabClient, made: Any) -> None:
    name, vm = made("1M:blank")
    lab.set_vm(name, connection="inaccessible")
    assert vm.name == name
    assert vm.config is None
    assert vm.runtime.connectionState == "inaccessible"
    lab.set_vm(name, connection="connected")
    assert vm.config.name == name


def test_tools_that_do_not_run_leave_a_snapshot_unquiesced(lab: LabClient, vcenter: Vcenter, made: Any) -> None:
    name, vm = made("1M:blank")
    for tools, expected in (("running", True), ("notRunning", False), ("notInstalled", False)):
        lab.set_vm(name, tools=tools)  # type: ignore[arg-type]
        assert (vm.guest.toolsRunningStatus == "guestToolsRunning") == expected
        WaitForTask(vm.CreateSnapshot_Task("s", "", False, True))
        assert vm.snapshot.rootSnapshotList[0].quiesced == expected
        vcenter.remove(vm.snapshot.currentSnapshot)


def test_a_vm_registered_again_is_the_same_under_other_ids(lab: LabClient, vcenter: Vcenter, made: Any) -> None:
    name, old = made("1M:blank", tracked=True)
    first = vcenter.snapshot(old, "first")
    change_id = disks(first.config)[0].backing.changeId
    instance, bios = old.config.instanceUuid, old.config.uuid
    moved = lab.register_again(name)
    assert moved["former_moref"] == old._GetMoId()
    new = vcenter.vm(moved["moref"])
    assert new._GetMoId() != old._GetMoId()
    for gone in (lambda: old.name, lambda: first.config):
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            gone()
    assert (new.config.instanceUuid, new.config.uuid) == (instance, bios)
    assert vcenter.content.searchIndex.FindByUuid(None, instance, True, True) == new
    assert new.snapshot.rootSnapshotList[0].name == "first"
    lab.guest_write(name, 0, 0, seed=1, length=1)
    second = vcenter.snapshot(new, "second")
    assert [(a.start, a.length) for a in new.QueryChangedDiskAreas(second, 2000, 0, change_id).changedArea] == [
        (0, BLOCK)
    ]
    WaitForTask(new.RemoveAllSnapshots_Task())


def test_bios_uuids_and_names_may_be_those_of_another_vm(lab: LabClient, vcenter: Vcenter, made: Any) -> None:
    name, one = made("1M:blank")
    twin, two = made("1M:blank", bios_uuid=one.config.uuid, folder="elsewhere")
    assert one.config.uuid == two.config.uuid
    assert one.config.instanceUuid != two.config.instanceUuid
    assert len(vcenter.content.searchIndex.FindAllByUuid(None, one.config.uuid, True, False)) == 2
    lab.set_vm(twin, name=name)
    assert one.name == two.name
    with pytest.raises(LabError) as ambiguous:
        lab.vm(name)
    assert ambiguous.value.reason == "AMBIGUOUS_NAME"
    third, _ = made("1M:blank")
    with pytest.raises(LabError):
        lab.set_vm(third, name=name)  # one in a folder


def test_an_encrypted_vm_shows_its_key_and_ciphertext_in_the_folder(
    lab: LabClient, vcenter: Vcenter, made: Any
) -> None:
    name, vm = made("1M:blank")
    lab.set_vm(name, encrypted=True)
    assert vm.config.keyId.providerId.id == "lab-kms"
    assert disks(vm.config)[0].backing.keyId.keyId == vm.config.keyId.keyId
    lab.power_off(name)
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)
    pieces = []
    for range_ in ("bytes=0-1048575", "bytes=1000-1999"):
        path = f"/folder/{name}/{name}-flat.vmdk?dcPath=lab&dsName=labstore"
        connection.request("GET", path, headers={"Cookie": vcenter.cookie, "Range": range_})
        pieces.append(connection.getresponse().read())
    connection.close()
    assert len(set(pieces[0])) == 256  # the disk is blank
    assert pieces[1] == pieces[0][1000:2000]  # the same for every way of asking


def test_small_files_of_a_vm_can_be_read(vcenter: Vcenter, lab: LabClient, made: Any) -> None:
    name, vm = made("1M:blank")
    listed = {found.name.rpartition("/")[2]: found for found in vm.layoutEx.file}
    assert {found.type for found in listed.values()} == {"diskExtent", "config", "nvram"}
    assert {option.key: option.value for option in vm.config.extraConfig} == {"nvram": f"{name}.nvram"}
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)
    for file in (f"{name}.vmx", f"{name}.nvram"):
        connection.request(
            "GET", f"/folder/{name}/{file}?dcPath=lab&dsName=labstore", headers={"Cookie": vcenter.cookie}
        )
        assert len(connection.getresponse().read()) == listed[file].size
    connection.close()


def test_an_added_disk_with_a_file_system_is_mounted_by_the_guest(lab: LabClient, made: Any, tmp_path: Path) -> None:
    name, _ = made("1M:blank", "16M:ext4")
    added = lab.add_disk(name, "16M:ext4@1", small_files=3)
    assert added["mountpoint"] == "/data"
    (tmp_path / "page").write_text("here")
    lab.guest_put(name, tmp_path / "page", "/data/page")
    before = tmp_path / "raw"
    lab.export(name, added["disk"], before)
    assert b"here" in before.read_bytes()
    lab.guest_run(name, share=0.2, seed=1)
    blank, _ = made("1M:blank")
    with pytest.raises(LabError) as refused:
        lab.guest_put(blank, tmp_path / "page", "/page")
    assert refused.value.reason == "INVALID_ARGUMENT"


def test_a_guests_file_operations_see_through_a_pile_of_deltas(
    lab: LabClient, vcenter: Vcenter, made: Any, tmp_path: Path, exported: Export
) -> None:
    name, vm = made("24M:ext4", "16M:ext4", tracked=True)
    contents = {}
    for number in range(4):
        page = tmp_path / "page"
        page.write_bytes(bytes([number]) * 200_000)
        lab.guest_put(name, page, f"/var/{number}")
        lab.guest_put(name, page, f"/data/{number}")
        vcenter.snapshot(vm, f"s{number}")
        contents[f"s{number}"] = exported(name, 0, f"s{number}").read_bytes()
    for number in range(4):
        for folder in ("/var", "/data"):
            lab.guest_cat(name, f"{folder}/{number}", tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == bytes([number]) * 200_000
    for snapshot, content in contents.items():
        assert exported(name, 0, snapshot).read_bytes() == content
    WaitForTask(vm.RemoveAllSnapshots_Task())
    for snapshot, content in contents.items():
        assert exported(name, 0, snapshot).read_bytes() == content
