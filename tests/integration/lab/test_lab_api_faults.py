"""The API fails on demand: by method, by count, with faults, lost sessions, cut connections, and failing tasks."""

from __future__ import annotations

import http.client
import itertools
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_rig import Vcenter, disks
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError
from sendense_lab.faults import KINDS

names = (f"api-{number}" for number in itertools.count())
CUT = (http.client.HTTPException, OSError)


@pytest.fixture
def name(lab: LabClient) -> str:
    return str(lab.create_vm(next(names), ["1M:blank"])["name"])


@pytest.fixture
def vm(lab: LabClient, vcenter: Vcenter, name: str) -> Any:
    yield vcenter.vm(lab.vm(name)["moref"])
    lab.clear_faults()


def log_in_again(vcenter: Vcenter) -> None:
    account = vcenter.account
    vcenter.content.sessionManager.Login(account["username"], account["password"], None)


def test_a_fault_hits_the_nth_call_of_its_method_and_no_other(lab: LabClient, vm: Any) -> None:
    lab.set_fault("api-error", method="Fetch", error="HostCommunication", after=2)
    assert vm.name
    assert vm.name
    with pytest.raises(vmodl.fault.HostCommunication):
        _ = vm.name
    assert vm.name  # it was to happen once
    (fault,) = lab.faults()
    assert (fault["seen"], fault["spoiled"], fault["spent"]) == (3, 1, True)


def test_a_fault_may_be_about_one_vm_and_last(lab: LabClient, vcenter: Vcenter, vm: Any, name: str) -> None:
    other = vcenter.vm(lab.create_vm(next(names), ["1M:blank"])["moref"])
    with lab.fault("api-error", method="*Snapshot*", error="NoPermission", vm=name, times=None):
        for _ in range(3):
            with pytest.raises(vim.fault.NoPermission):
                vm.CreateSnapshot_Task("s", "", False, False)
        vcenter.remove(vcenter.snapshot(other, "s"))
    vcenter.remove(vcenter.snapshot(vm, "s"))


@pytest.mark.parametrize(
    "error", ["NotAuthenticated", "InvalidState", "TaskInProgress", "SystemError", "ManagedObjectNotFound", "FileFault"]
)
def test_every_fault_of_the_api_arrives_as_itself(lab: LabClient, vm: Any, error: str) -> None:
    lab.set_fault("api-error", method="Fetch", error=error)
    with pytest.raises(vmodl.MethodFault) as raised:
        _ = vm.name
    assert type(raised.value).__name__.rpartition(".")[2] == error


def test_an_expired_session_needs_a_login(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    lab.set_fault("api-session-expired", method="CreateSnapshot_Task")
    assert vm.name
    with pytest.raises(vim.fault.NotAuthenticated):
        vm.CreateSnapshot_Task("s", "", False, False)
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = vm.name
    log_in_again(vcenter)
    assert vm.snapshot is None


def test_a_dropped_call_does_nothing_and_a_dropped_answer_hides_what_was_done(
    lab: LabClient, vm: Any, name: str
) -> None:
    lab.set_fault("api-drop", method="CreateSnapshot_Task")
    with pytest.raises(CUT):
        vm.CreateSnapshot_Task("dropped", "", False, False)
    assert lab.snapshots(name) == []
    lab.set_fault("api-drop-answer", method="CreateSnapshot_Task")
    with pytest.raises(CUT):
        vm.CreateSnapshot_Task("unanswered", "", False, False)
    deadline = time.monotonic() + 5
    while not lab.snapshots(name):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert vm.snapshot.rootSnapshotList[0].name == "unanswered"


def test_a_proxy_may_answer_in_the_vcenters_place(lab: LabClient) -> None:
    body = (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
        '<RetrieveServiceContent xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this>'
        "</RetrieveServiceContent></soapenv:Body></soapenv:Envelope>"
    )
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)
    lab.set_fault("api-http", status=503, method="RetrieveServiceContent")
    for expected in (503, 200):
        connection.request("POST", "/sdk", body, {"SOAPAction": '"urn:vim25/8.0.1.0"'})
        answer = connection.getresponse()
        assert answer.status == expected
        assert (b"Envelope" in answer.read()) == (expected == 200)
    connection.close()
    lab.clear_faults()


def test_calls_and_tasks_can_be_slow(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    with lab.fault("api-delay", method="Fetch", ms=200):
        started = time.monotonic()
        assert vm.name
        assert time.monotonic() - started >= 0.2
    with lab.fault("task-delay", method="CreateSnapshot_Task", ms=300):
        started = time.monotonic()
        task = vm.CreateSnapshot_Task("s", "", False, False)
        assert time.monotonic() - started < 0.3
        assert task.info.state == "running"
        WaitForTask(task)
        assert time.monotonic() - started >= 0.3
    vcenter.remove(task.info.result)


def test_a_task_can_fail_after_its_call_succeeded(lab: LabClient, vm: Any) -> None:
    lab.set_fault("task-error", method="ReconfigVM_Task", error="InvalidPowerState")
    task = vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True))
    with pytest.raises(vim.fault.InvalidPowerState):
        WaitForTask(task)
    assert not vm.config.changeTrackingEnabled


def test_calls_are_remembered_so_that_each_can_be_chosen(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    lab.calls(reset=True)
    vcenter.remove(vcenter.snapshot(vm, "s"))
    calls = lab.calls(reset=True)
    assert {"CreateSnapshot_Task", "RemoveSnapshot_Task", "WaitForUpdates"} <= {call["method"] for call in calls}
    assert calls[0] == {"method": "CreateSnapshot_Task", "object": vm._GetMoId()}
    assert lab.calls() == []


def test_each_call_in_turn_can_be_spoiled(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    """What a fault test does: fail the first call of a job, then the second, until there is none left to fail."""
    failed = []
    for number in itertools.count():
        lab.calls(reset=True)
        lab.set_fault("api-error", after=number, error="HostCommunication")
        try:
            vcenter.remove(vcenter.snapshot(vm, "job"))
        except vmodl.fault.HostCommunication:
            failed.append(lab.calls()[number]["method"])
        (fault,) = lab.clear_faults()
        if not fault["spoiled"]:
            break
        lab.remove_snapshot(vm.name)
    assert {"CreateSnapshot_Task", "CreateFilter", "WaitForUpdates", "Fetch", "RemoveSnapshot_Task"} <= set(failed)


def test_a_snapshot_cannot_be_created(lab: LabClient, vcenter: Vcenter, vm: Any, name: str) -> None:
    lab.set_fault("snapshot-create", vm=name)
    with pytest.raises(vim.fault.SnapshotFault):
        vcenter.snapshot(vm, "s")
    vcenter.remove(vcenter.snapshot(vm, "s"))


def test_a_snapshot_cannot_be_removed_until_the_fault_is_cleared(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    snapshot = vcenter.snapshot(vm, "s")
    with lab.fault("snapshot-remove", vm=vm.name):
        for _ in range(2):
            with pytest.raises(vim.fault.FileLocked):
                vcenter.remove(snapshot)
        with pytest.raises(vim.fault.FileLocked):
            WaitForTask(vm.RemoveAllSnapshots_Task())
        assert vm.snapshot.currentSnapshot == snapshot
    vcenter.remove(snapshot)
    assert vm.snapshot is None


def test_files_that_cannot_be_merged_leave_consolidation_needed(
    lab: LabClient, vcenter: Vcenter, vm: Any, exported: Callable[..., Path]
) -> None:
    with lab.fault("consolidation", vm=vm.name):
        snapshot = vcenter.snapshot(vm, "s")
        lab.guest_write(vm.name, 0, 5, seed=1, length=100)
        vcenter.remove(snapshot)
        assert vm.snapshot is None
        assert vm.runtime.consolidationNeeded
        assert disks(vm.config)[0].backing.parent is not None
        with pytest.raises(vim.fault.FileLocked):
            WaitForTask(vm.ConsolidateVMDisks_Task())
        assert vm.runtime.consolidationNeeded
    content = exported(vm.name, 0).read_bytes()
    WaitForTask(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    assert disks(vm.config)[0].backing.parent is None
    assert exported(vm.name, 0).read_bytes() == content


def test_a_guest_that_cannot_be_quiesced_can_still_be_snapshotted_without(
    lab: LabClient, vcenter: Vcenter, vm: Any
) -> None:
    for error in ("ApplicationQuiesceFault", "FilesystemQuiesceFault"):
        with lab.fault("quiesce", error=error):
            with pytest.raises(getattr(vim.fault, error)):
                WaitForTask(vm.CreateSnapshot_Task("s", "", False, True))
            vcenter.remove(vcenter.snapshot(vm, "crash-consistent"))
    assert vm.snapshot is None


def test_a_full_datastore_takes_no_snapshot(lab: LabClient, vcenter: Vcenter, vm: Any) -> None:
    with lab.fault("datastore-free", bytes=12345):
        assert vm.datastore[0].summary.freeSpace == 12345
        assert vm.datastore[0].info.freeSpace == 12345
        vcenter.remove(vcenter.snapshot(vm, "s"))
    with lab.fault("datastore-free", bytes=0), pytest.raises(vim.fault.NoDiskSpace):
        vcenter.snapshot(vm, "s")
    assert vm.datastore[0].summary.freeSpace > 12345


def test_a_changed_certificate_is_not_the_pinned_one(lab: LabClient) -> None:
    before = lab.credentials()
    changed = lab.change_certificate()
    assert changed["sha256"] != before["sha256"]
    assert lab.credentials()["sha256"] == changed["sha256"]
    assert lab.credentials()["password"] == before["password"]
    client = Vcenter(lab)
    assert client.content.about.apiType == "VirtualCenter"
    client.close()


def test_faults_survive_a_restart_with_their_counts(short_tmp: Path) -> None:
    with LabClient.start(short_tmp) as lab:
        lab.create_vm("web", ["1M:blank"])
        lab.set_fault("api-error", vm="web", times=2, method="CreateSnapshot_Task")
        client = Vcenter(lab)
        with pytest.raises(vmodl.fault.HostCommunication):
            client.vm(lab.vm("web")["moref"]).CreateSnapshot_Task("s", "", False, False)
        client.si._stub.DropConnections()
        lab.kill()
        lab.restart()
        (fault,) = lab.faults()
        assert (fault["vm"], fault["spoiled"], fault["spent"]) == ("web", 1, False)
        again = Vcenter(lab)
        with pytest.raises(vmodl.fault.HostCommunication):
            again.vm(lab.vm("web")["moref"]).CreateSnapshot_Task("s", "", False, False)
        assert lab.faults()[0]["spent"]
        again.close()


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("no-such-kind", {}),
        ("api-error", {"error": "NoSuchFault"}),
        ("api-error", {"colour": "red"}),
        ("api-http", {"status": 200}),
        ("cbt-page-areas", {}),
        ("cbt-page-areas", {"areas": 0}),
        ("read-slow", {"ms": "soon"}),
        ("api-drop", {"times": 0}),
        ("api-drop", {"vm": "nobody"}),
        ("cbt-error", {"disk": 0}),
    ],
)
def test_faults_that_make_no_sense_are_refused(lab: LabClient, kind: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(LabError) as refused:
        lab.set_fault(kind, **parameters)
    assert refused.value.reason in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert refused.value.message
    assert lab.faults() == []


def test_every_kind_is_described(lab: LabClient) -> None:
    described = lab.fault_kinds()
    assert {kind["kind"] for kind in described} == set(KINDS)
    assert all(len(kind["about"]) > 10 for kind in described)
    with pytest.raises(LabError):
        lab.clear_faults("api-drop")
