"""The real pyVmomi client works with the lab as with a vCenter: login, inventory, properties, tasks, faults."""

from __future__ import annotations

import hashlib
import socket
import ssl
from typing import Any

import pytest
from lab_rig import Vcenter, disks
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError

query = vmodl.query.PropertyCollector


@pytest.fixture(scope="module")
def vm_json(lab: LabClient) -> dict[str, Any]:
    return lab.create_vm("inventory", ["32M:ext4", "16M:ext4"], small_files=10)


def test_a_wrong_password_is_refused(vcenter: Vcenter) -> None:
    manager = vcenter.content.sessionManager
    manager.Logout()
    for name, password in ((vcenter.account["username"], "wrong"), ("root", vcenter.account["password"])):
        with pytest.raises(vim.fault.InvalidLogin):
            manager.Login(name, password, None)
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = vcenter.content.rootFolder.name


def test_an_unknown_certificate_is_refused(lab: LabClient) -> None:
    account = lab.credentials()
    strict = ssl.create_default_context()
    with (
        socket.create_connection((account["host"], account["port"])) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        strict.wrap_socket(plain, server_hostname=account["host"])


def test_the_thumbprints_are_those_of_the_served_certificate(lab: LabClient) -> None:
    account = lab.credentials()
    served = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((account["host"], account["port"])))
    assert bytes.fromhex(account["sha256"].replace(":", "")) == hashlib.sha256(served).digest()
    assert bytes.fromhex(account["sha1"].replace(":", "")) == hashlib.sha1(served, usedforsecurity=False).digest()
    assert (lab.credentials_path.stat().st_mode & 0o777) == 0o600
    assert ((lab.root / "lab.sock").stat().st_mode & 0o777) == 0o600


def test_pinning_the_thumbprint_is_enough_to_log_in(lab: LabClient) -> None:
    account = lab.credentials()
    si = SmartConnect(
        host=account["host"],
        port=account["port"],
        user=account["username"],
        pwd=account["password"],
        thumbprint=account["sha256"],
    )
    assert si.content.about.apiType == "VirtualCenter"
    Disconnect(si)


def test_a_lost_session_is_not_authenticated_until_a_new_login(
    lab: LabClient, vcenter: Vcenter, vm_json: dict[str, Any]
) -> None:
    vm = vcenter.vm(vm_json["moref"])
    assert vm.name == "inventory"
    assert lab.lose_sessions()["sessions"] >= 1
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = vm.name
    account = vcenter.account
    vcenter.content.sessionManager.Login(account["username"], account["password"], None)
    assert vm.name == "inventory"


def test_hardware_shows_both_disks_with_identity_and_backing(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    vm = vcenter.vm(vm_json["moref"])
    first, second = disks(vm.config)
    assert (first.key, first.unitNumber, first.capacityInBytes) == (2000, 0, 32 * 1024**2)
    assert (second.key, second.unitNumber, second.capacityInKB) == (2001, 1, 16 * 1024)
    assert first.backing.fileName == "[labstore] inventory/inventory.vmdk"
    assert second.backing.fileName == "[labstore] inventory/inventory_1.vmdk"
    assert first.backing.uuid == vm_json["disks"][0]["uuid"]
    assert first.backing.diskMode == "persistent"
    assert first.backing.parent is None
    assert vm.config.instanceUuid == vm_json["instance_uuid"]
    assert vm.config.version == "vmx-19"
    assert vm.capability.changeTrackingSupported
    assert vm.runtime.powerState == "poweredOn"
    assert vm.runtime.host.name == "lab-host.local"
    assert vm.datastore[0].summary.freeSpace > 0
    assert vm.snapshot is None
    assert vcenter.content.about.instanceUuid


def test_a_view_with_a_traversal_returns_the_asked_properties(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    view = vcenter.content.viewManager.CreateContainerView(vcenter.content.rootFolder, [vim.VirtualMachine], True)
    step = query.TraversalSpec(name="v", path="view", type=vim.view.ContainerView, skip=False)
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=view, skip=True, selectSet=[step])],
        propSet=[
            query.PropertySpec(
                type=vim.VirtualMachine,
                pathSet=["name", "config.hardware.device", "runtime.powerState", "snapshot.rootSnapshotList"],
            )
        ],
    )
    answer = vcenter.content.propertyCollector.RetrievePropertiesEx([spec], query.RetrieveOptions())
    mine = next(found for found in answer.objects if found.obj._GetMoId() == vm_json["moref"])
    values = {value.name: value.val for value in mine.propSet}
    assert set(values) == {"name", "config.hardware.device", "runtime.powerState"}  # no snapshot: not set
    assert values["name"] == "inventory"
    assert isinstance(values["config.hardware.device"][0], vim.vm.device.VirtualSCSIController)
    assert values["runtime.powerState"] == vim.VirtualMachine.PowerState.poweredOn
    view.Destroy()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        view.Destroy()


def test_retrieval_continues_with_a_token(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    content = vcenter.content
    objects = [query.ObjectSpec(obj=ref) for ref in (content.rootFolder, vcenter.vm(vm_json["moref"]))]
    spec = query.FilterSpec(objectSet=objects, propSet=[query.PropertySpec(type=vim.ManagedEntity, pathSet=["name"])])
    first = content.propertyCollector.RetrievePropertiesEx([spec], query.RetrieveOptions(maxObjects=1))
    assert len(first.objects) == 1
    second = content.propertyCollector.ContinueRetrievePropertiesEx(first.token)
    assert [found.propSet[0].val for found in second.objects] == ["inventory"]
    assert second.token is None
    with pytest.raises(vmodl.fault.InvalidArgument):
        content.propertyCollector.ContinueRetrievePropertiesEx(first.token)


def test_a_property_that_does_not_exist_is_a_fault(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=vcenter.vm(vm_json["moref"]))],
        propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["config.nonsense"])],
    )
    with pytest.raises(vmodl.query.InvalidProperty):
        vcenter.content.propertyCollector.RetrieveContents([spec])


def test_the_inventory_can_be_walked_from_the_root(lab: LabClient, vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    twin = lab.create_vm("inventory", ["16M:ext4"], small_files=5, folder="other site")
    datacenter = vcenter.content.rootFolder.childEntity[0]
    assert datacenter.name == "lab"
    children = {child.name: child for child in datacenter.vmFolder.childEntity}
    assert [vm._GetMoId() for vm in children["other site"].childEntity] == [twin["moref"]]
    assert children["inventory"]._GetMoId() == vm_json["moref"]
    assert vcenter.vm(twin["moref"]).parent.name == "other site"
    found = vcenter.content.searchIndex.FindByUuid(None, twin["instance_uuid"], True, True)
    assert found._GetMoId() == twin["moref"]
    lab.delete_vm(twin["moref"])
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = found.name


def test_tasks_report_their_result_and_their_fault(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    vm = vcenter.vm(vm_json["moref"])
    task = vm.CreateSnapshot_Task("one", "first", False, True)
    assert WaitForTask(task) == "success"
    snapshot = task.info.result
    tree = vm.snapshot.rootSnapshotList[0]
    assert (tree.name, tree.description, tree.quiesced) == ("one", "first", True)
    assert tree.snapshot == vm.snapshot.currentSnapshot == snapshot
    with pytest.raises(vim.fault.InvalidName):
        vm.CreateSnapshot_Task("", "", False, False)
    # Change tracking must not be changed under a snapshot.
    with pytest.raises(vim.fault.InvalidSnapshotFormat):
        WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    vcenter.remove(snapshot)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snapshot.RemoveSnapshot_Task(False)
    assert vm.snapshot is None


def test_snapshots_form_a_line_of_delta_backings(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    vm = vcenter.vm(vm_json["moref"])
    first, second = vcenter.snapshot(vm, "a"), vcenter.snapshot(vm, "b")
    names = [disks(found.config)[0].backing.fileName for found in (first, second, vm)]
    assert names[0] == "[labstore] inventory/inventory.vmdk"
    assert len(set(names)) == 3
    current = disks(vm.config)[0].backing
    assert current.parent.fileName == names[1]
    assert current.parent.parent.fileName == names[0]
    assert vm.snapshot.rootSnapshotList[0].childSnapshotList[0].snapshot == second
    vcenter.remove(first)
    assert disks(second.config)[0].backing.fileName == names[0]  # the first delta went into the base
    vcenter.remove(second)
    assert disks(vm.config)[0].backing.fileName == names[0]


def test_removal_without_consolidation_is_visible_until_it_is_done(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    vm = vcenter.vm(vm_json["moref"])
    vcenter.remove(vcenter.snapshot(vm, "left"), consolidate=False)
    assert vm.snapshot is None
    assert vm.runtime.consolidationNeeded
    WaitForTask(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded


def test_methods_that_the_lab_lacks_say_so(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    with pytest.raises(vmodl.fault.NotSupported):
        vcenter.vm(vm_json["moref"]).SuspendVM_Task()


def test_all_snapshots_can_be_removed_at_once(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    vm = vcenter.vm(vm_json["moref"])
    first = vcenter.snapshot(vm, "first")
    vcenter.snapshot(vm, "second")
    WaitForTask(first.RemoveSnapshot_Task(removeChildren=True))
    assert vm.snapshot is None
    vcenter.snapshot(vm, "third")
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None
    assert not vm.runtime.consolidationNeeded
    assert disks(vm.config)[0].backing.parent is None


def test_power_changes_once(lab: LabClient, vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    vm = vcenter.vm(vm_json["moref"])
    WaitForTask(vm.PowerOffVM_Task())
    assert vm.runtime.powerState == "poweredOff"
    with pytest.raises(vim.fault.InvalidPowerState):
        WaitForTask(vm.PowerOffVM_Task())
    with pytest.raises(LabError):  # its guest does nothing
        lab.guest_run(vm_json["moref"], share=0.1)
    WaitForTask(vm.PowerOnVM_Task())
    assert vm.runtime.powerState == "poweredOn"


def test_a_filter_reports_what_changed_since_the_last_version(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    collector, vm = vcenter.content.propertyCollector, vcenter.vm(vm_json["moref"])
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=vm)],
        propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "snapshot"])],
    )
    watched = collector.CreateFilter(spec, True)
    options = query.WaitOptions(maxWaitSeconds=0)
    first = collector.WaitForUpdatesEx("", options)
    entered = first.filterSet[0].objectSet[0]
    assert entered.kind == "enter"
    assert [change.name for change in entered.changeSet] == ["name"]
    assert collector.WaitForUpdatesEx(first.version, options) is None
    snapshot = vcenter.snapshot(vm, "seen")
    # WaitForTask used the same collector: start over, as a client must after InvalidCollectorVersion.
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        collector.WaitForUpdatesEx(first.version, options)
    again = collector.CheckForUpdates("")
    changes = {change.name for change in again.filterSet[0].objectSet[0].changeSet}
    assert changes == {"name", "snapshot"}
    vcenter.remove(snapshot)
    watched.Destroy()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        watched.Destroy()


def test_collectors_of_one_session_have_versions_of_their_own(vcenter: Vcenter, vm_json: dict[str, Any]) -> None:
    """Who waits for several things at once makes a collector for each, as with a vCenter."""
    shared, vm = vcenter.content.propertyCollector, vcenter.vm(vm_json["moref"])
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=vm)], propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])]
    )
    options = query.WaitOptions(maxWaitSeconds=0)
    one, other = shared.CreatePropertyCollector(), shared.CreatePropertyCollector()
    for own in (one, other):
        own.CreateFilter(spec, True)
    versions = [own.WaitForUpdatesEx("", options).version for own in (one, other)]
    for own, version in zip((one, other), versions, strict=True):
        assert own.WaitForUpdatesEx(version, options) is None
    one.Destroy()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        one.WaitForUpdatesEx("", options)
    other.Destroy()
