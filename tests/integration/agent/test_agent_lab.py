"""The agent against the lab's vCenter, through pyVmomi, a real tunnel and a real NBD server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agent_rig import (
    ALIGNMENT,
    MIB,
    AgentRig,
    assert_secret_in_no_process,
    children_running,
    node_with_agent,
    overlay,
    same_content,
    write_vcenters,
)
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask

from fakes.nbd_server import make_qcow2
from sendense.agent.v1 import agent_pb2
from sendense_agent.certificate import Pin
from sendense_blockio.extents import Extent, subtract, total
from sendense_blockio.journal import covers_exactly, decode_entries
from sendense_lab.client import LabClient
from sendense_lab.credentials import ensure_certificate
from sendense_rpc.errors import RemoteError

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


@pytest.fixture
def vm(lab: LabClient) -> Iterator[str]:
    """A VM of its own for each test: two disks with ext4."""
    name = f"web-{os.urandom(3).hex()}"
    lab.create_vm(name, ["48M:ext4", "20M:ext4"], small_files=40)
    yield name
    lab.delete_vm(name)


@pytest.fixture
async def rig(lab: LabClient, sendense_home: Path) -> AsyncIterator[AgentRig]:
    images = {
        "disk-0": (make_qcow2(sendense_home / "disk-0.qcow2", 48 * MIB), "lab"),
        "disk-1": (make_qcow2(sendense_home / "disk-1.qcow2", 20 * MIB), "lab"),
        "foreign": (make_qcow2(sendense_home / "foreign.qcow2", 48 * MIB), "another"),
    }
    async with node_with_agent(lab, sendense_home, images) as running:
        yield running


async def test_vms_are_listed_and_inspected(rig: AgentRig, lab: LabClient, vm: str) -> None:
    expected = next(each for each in lab.vms() if each["name"] == vm)
    (listed,) = await rig.list_vms(vm)
    assert (listed.moref, listed.vm_uuid) == (expected["moref"], expected["instance_uuid"])
    assert listed.vcenter_uuid == lab.info()["instance_uuid"]
    assert listed.inventory_path == f"/lab/vm/{vm}"
    assert not listed.disks
    assert {each.name for each in await rig.list_vms()} >= {vm}
    seen = await rig.inspect(agent_pb2.VmRef(vcenter_uuid=listed.vcenter_uuid, vm_uuid=listed.vm_uuid))
    assert [(d.device_key, d.capacity_bytes, d.file_name) for d in seen.disks] == [
        (d["key"], d["capacity_bytes"], d["file"]) for d in expected["disks"]
    ]
    assert [d.identity for d in seen.disks] == [f"{d['uuid']}/{d['key']}" for d in expected["disks"]]
    assert seen.datastore_free_bytes > 0
    assert (seen.power_state, seen.snapshot_count, seen.change_tracking_supported) == ("poweredOn", 0, True)
    assert (seen.tools_status, seen.host) == ("guestToolsRunning", expected["host"])
    assert seen.guest_name.startswith("Debian")
    assert [d.slot for d in seen.disks] == ["SCSI controller 0:0", "SCSI controller 0:1"]
    (datastore,) = seen.datastores
    assert {d.datastore for d in seen.disks} == {datastore.name}
    assert 0 < datastore.free_bytes == seen.datastore_free_bytes <= datastore.capacity_bytes
    lab.create_snapshot(vm, "mine")
    ours = await rig.create_snapshot(agent_pb2.VmRef(vcenter_uuid=listed.vcenter_uuid, vm_uuid=listed.vm_uuid))
    seen = await rig.inspect(agent_pb2.VmRef(vcenter_uuid=listed.vcenter_uuid, vm_uuid=listed.vm_uuid))
    assert [(each.name, each.job_id, each.installation_id) for each in seen.snapshots] == [
        ("mine", "", ""),
        (ours.name, "backup-web-1", "installation-1"),
    ]
    assert seen.snapshots[1].moref == ours.moref
    hardware = json.loads(seen.hardware_json)
    assert hardware["hardware"]["numCPU"] >= 1
    assert lab.credentials()["password"] not in seen.hardware_json


async def test_unknown_vm_and_unknown_vcenter_are_not_found(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    for wrong in (
        agent_pb2.VmRef(vcenter_uuid=ref.vcenter_uuid, vm_uuid="00000000-0000-0000-0000-000000000000"),
        agent_pb2.VmRef(vcenter_uuid="00000000-0000-0000-0000-000000000000", vm_uuid=ref.vm_uuid),
    ):
        with pytest.raises(RemoteError) as failed:
            await rig.inspect(wrong)
        assert failed.value.reason == "VM_NOT_FOUND"


async def test_full_and_increment_equal_their_snapshots(
    lab: LabClient, vm: str, sendense_home: Path, short_tmp: Path
) -> None:
    fulls = {f"disk-{n}": make_qcow2(sendense_home / f"disk-{n}.qcow2", size * MIB) for n, size in enumerate((48, 20))}
    async with node_with_agent(lab, sendense_home, {name: (path, "lab") for name, path in fulls.items()}) as rig:
        first = await _full(rig, lab, vm)
    lab.guest_run(vm, share=0.1, seed=7)
    lab.guest_write(vm, 0, 40 * MIB, seed=3, length=300_000)
    image = overlay(sendense_home / "incr-0.qcow2", fulls["disk-0"])
    async with node_with_agent(lab, sendense_home, {"incr-0": (image, "lab")}) as rig:
        await _increment(rig, lab, vm, first.disks[0].change_id, short_tmp / "second.raw")
    same_content(image, short_tmp / "second.raw")


async def test_fact_14_disks_beyond_the_limit_of_a_host_wait_their_turn(
    lab: LabClient, vm: str, sendense_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_AGENT_DISKS_AT_ONCE", "1")
    images = {
        f"disk-{n}": (make_qcow2(sendense_home / f"disk-{n}.qcow2", size * MIB), "lab")
        for n, size in enumerate((48, 20))
    }
    async with node_with_agent(lab, sendense_home, images) as rig:
        ref = await rig.ref(vm)
        snapshot = await rig.create_snapshot(ref)
        lab.set_fault("read-slow", ms=20, times=None)
        captures = asyncio.gather(
            *(
                rig.capture(
                    rig.target(ref, snapshot.moref, disk.device_key, f"disk-{number}"), [Extent(0, disk.capacity_bytes)]
                )
                for number, disk in enumerate(snapshot.disks)
            )
        )
        while not captures.done():
            readers = await asyncio.to_thread(children_running, "nbdkit", str(rig.home))
            assert len(readers) <= 1
            await asyncio.sleep(0.02)
        assert [copied.done is not None for copied in await captures] == [True, True]
        lab.clear_faults()
        await rig.remove_snapshot(ref)


async def _full(rig: AgentRig, lab: LabClient, vm: str) -> agent_pb2.Snapshot:
    ref = await rig.ref(vm)
    tracked = await rig.enable_tracking(ref)
    assert tracked.change_tracking_enabled
    assert tracked.snapshot_count == 0
    snapshot = await rig.create_snapshot(ref)
    assert len(snapshot.disks) == 2
    for number, disk in enumerate(snapshot.disks):
        areas, changed, _ = await rig.plan(ref, snapshot.moref, disk.device_key)
        assert 0 < changed <= total(areas) <= disk.capacity_bytes
        copied = await rig.capture(rig.target(ref, snapshot.moref, disk.device_key, f"disk-{number}"), areas)
        assert copied.done is not None
        assert copied.done.reader == "https"
        assert copied.done.progress.done_bytes == total(areas)
        entries = [entry for each in copied.entries for entry in decode_entries(each)]
        assert covers_exactly(entries, areas)
        raw = rig.home / "first.raw"
        lab.export(vm, number, raw, snapshot=snapshot.moref)
        same_content(rig.home / f"disk-{number}.qcow2", raw, in_use=True)
    assert await rig.remove_snapshot(ref, moref=snapshot.moref) == [snapshot.moref]
    assert lab.snapshots(vm) == []
    return snapshot


async def _increment(rig: AgentRig, lab: LabClient, vm: str, since: str, raw: Path) -> None:
    ref, holder = await rig.ref(vm), rig.holder("backup-web-2")
    snapshot = await rig.create_snapshot(ref, holder)
    lab.guest_write(vm, 0, 44 * MIB, seed=4, length=50_000)
    expected = lab.changed(vm, 0, since, snapshot=snapshot.moref)
    lab.set_page_areas(3)
    key = snapshot.disks[0].device_key
    areas, changed, _ = await rig.plan(ref, snapshot.moref, key, since)
    lab.set_page_areas(None)
    assert len(expected["areas"]) > 3, "several pages"
    assert changed == expected["bytes"]
    assert all(area.offset % ALIGNMENT == 0 and area.length % ALIGNMENT == 0 for area in areas)
    changed_areas = [Extent(area["offset"], area["length"]) for area in expected["areas"]]
    assert subtract(changed_areas, areas) == [], "nothing that changed is left out"
    target = rig.target(ref, snapshot.moref, key, "incr-0", fresh=False, holder=holder, first_sequence=5)
    copied = await rig.capture(target, areas)
    assert copied.sequences == list(range(5, 5 + len(copied.sequences)))
    assert copied.done is not None
    assert copied.done.progress.done_bytes == total(areas)
    lab.export(vm, 0, raw, snapshot=snapshot.moref)
    assert await rig.remove_snapshot(ref, holder) == [snapshot.moref]


async def test_captured_full_equals_the_snapshot_although_the_guest_writes_on(
    rig: AgentRig, lab: LabClient, vm: str, short_tmp: Path
) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    lab.guest_write(vm, 0, 0, seed=9, length=8 * MIB)
    disk = snapshot.disks[0]
    assert disk.change_id == ""
    areas, changed, _ = await rig.plan(ref, snapshot.moref, disk.device_key)
    assert areas == [Extent(0, disk.capacity_bytes)], "without change tracking the whole disk is planned"
    assert changed == disk.capacity_bytes
    await rig.capture(rig.target(ref, snapshot.moref, disk.device_key, "disk-0"), areas)
    lab.export(vm, 0, short_tmp / "snapshot.raw", snapshot=snapshot.moref)
    await rig.remove_snapshot(ref)
    same_content(rig.home / "disk-0.qcow2", short_tmp / "snapshot.raw", in_use=True)


async def test_nothing_to_copy_is_done_at_once(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    copied = await rig.capture(rig.target(ref, snapshot.moref, snapshot.disks[0].device_key, "disk-0"), [])
    assert copied.done is not None
    assert copied.done.progress.done_bytes == 0
    assert copied.sequences == []


async def test_the_job_has_one_snapshot_and_only_the_job_removes_it(rig: AgentRig, lab: LabClient, vm: str) -> None:
    ref = await rig.ref(vm)
    made = await rig.create_snapshot(ref)
    joined = await rig.create_snapshot(ref, rig.holder(attempt=2))
    assert joined.moref == made.moref
    assert made.name == "sendense-backup-web-1"
    (in_lab,) = lab.snapshots(vm)
    said = json.loads(in_lab["description"])
    assert said.pop("event")  # the VM's newest event before it
    assert said == {"installation": "installation-1", "job": "backup-web-1", "attempt": 1}
    with pytest.raises(RemoteError) as stale:
        await rig.create_snapshot(ref, rig.holder(attempt=1))
    assert stale.value.reason == "STALE_ATTEMPT"
    with pytest.raises(RemoteError) as foreign:
        await rig.remove_snapshot(ref, rig.holder("another-job"), made.moref)
    assert foreign.value.reason == "SNAPSHOT_NOT_OURS"
    stranger = agent_pb2.Holder(job_id="backup-web-1", attempt=2, installation_id="another installation")
    assert await rig.remove_snapshot(ref, stranger) == []
    assert len(lab.snapshots(vm)) == 1
    assert await rig.remove_snapshot(ref, rig.holder(attempt=2), made.moref) == [made.moref]
    assert await rig.remove_snapshot(ref, rig.holder(attempt=2), made.moref) == [], "what is gone is no error"


async def test_another_epoch_and_a_faulted_query_ask_for_a_full(rig: AgentRig, lab: LabClient, vm: str) -> None:
    ref = await rig.ref(vm)
    await rig.enable_tracking(ref)
    snapshot = await rig.create_snapshot(ref)
    disk = snapshot.disks[0]
    epoch, _, _ = disk.change_id.rpartition("/")
    assert epoch
    for parent, reason in (
        ("52 00 11 22 33 44 55 66-77 88 99 aa bb cc dd ee/1", "CBT_RESET"),
        ("no change id", "CBT_RESET"),
        (f"{epoch}/999999", "CBT_RESET"),  # a count that went back
    ):
        with pytest.raises(RemoteError) as failed:
            await rig.plan(ref, snapshot.moref, disk.device_key, parent)
        assert failed.value.reason == reason
    with lab.fault("cbt-error"), pytest.raises(RemoteError) as failed:
        await rig.plan(ref, snapshot.moref, disk.device_key, disk.change_id)
    assert failed.value.reason == "AREAS_QUERY_FAILED"


async def test_change_tracking_is_not_enabled_under_a_snapshot(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    await rig.create_snapshot(ref)
    with pytest.raises(RemoteError) as failed:
        await rig.enable_tracking(ref)
    assert failed.value.reason == "CBT_NEEDS_NO_SNAPSHOT"


async def test_lost_sessions_are_renewed_in_the_middle_of_a_job(rig: AgentRig, lab: LabClient, vm: str) -> None:
    ref = await rig.ref(vm)
    lab.lose_sessions()
    snapshot = await rig.create_snapshot(ref)
    lab.lose_sessions()
    disk = snapshot.disks[1]
    areas, _, _ = await rig.plan(ref, snapshot.moref, disk.device_key)
    lab.lose_sessions()
    copied = await rig.capture(rig.target(ref, snapshot.moref, disk.device_key, "disk-1"), areas)
    assert copied.done is not None
    lab.lose_sessions()
    assert await rig.remove_snapshot(ref) == [snapshot.moref]


async def test_export_leased_to_another_agent_is_refused(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    target = rig.target(ref, snapshot.moref, snapshot.disks[0].device_key, "foreign")
    with pytest.raises(RemoteError) as failed:
        await rig.capture(target, [Extent(0, MIB)])
    assert failed.value.reason == "CAPTURE_FAILED"
    assert failed.value.metadata["side"] == "target"


async def test_areas_that_cannot_be_are_refused(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    disk = snapshot.disks[0]
    target = rig.target(ref, snapshot.moref, disk.device_key, "disk-0")
    for areas in (
        [Extent(MIB, MIB), Extent(0, MIB)],
        [Extent(0, 2 * MIB), Extent(MIB, MIB)],
        [Extent(47 * MIB, 2 * MIB)],
    ):
        with pytest.raises(RemoteError) as failed:
            await rig.capture(target, areas)
        assert failed.value.reason == "CAPTURE_INVALID"


async def test_a_delta_is_refused_by_the_https_reader(rig: AgentRig, lab: LabClient, vm: str) -> None:
    account = lab.credentials()

    def snapshot_by_somebody_else() -> None:
        context = Pin(Path(account["certificate"]).read_text(), exact=False).context()
        service = SmartConnect(
            host=account["host"],
            port=account["port"],
            user=account["username"],
            pwd=account["password"],
            sslContext=context,
        )
        uuid = next(each["instance_uuid"] for each in lab.vms() if each["name"] == vm)
        managed = service.content.searchIndex.FindAllByUuid(None, uuid, True, True)[0]
        WaitForTask(managed.CreateSnapshot_Task("sendense-backup-web-1", "made by hand", False, False), si=service)
        Disconnect(service)

    await asyncio.to_thread(snapshot_by_somebody_else)
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    target = rig.target(ref, snapshot.moref, snapshot.disks[0].device_key, "disk-0")
    with pytest.raises(RemoteError, match="itself a delta") as failed:
        await rig.capture(target, [Extent(0, MIB)])
    assert failed.value.reason == "READER_UNSUITABLE"
    assert await rig.remove_snapshot(ref) == [snapshot.moref]
    assert [each["description"] for each in lab.snapshots(vm)] == ["made by hand"]


async def _stopped_reader(rig: AgentRig, target: agent_pb2.CaptureTarget, size: int) -> tuple[asyncio.Task[None], int]:
    """Starts a capture and stops its nbdkit (SIGSTOP) before it has served all."""

    async def consume() -> None:
        async for _ in rig.events(target, [Extent(0, size)]):
            pass

    task = asyncio.create_task(consume())
    async with asyncio.timeout(20):
        while not (pids := children_running("nbdkit", str(rig.home))):
            assert not task.done(), task.exception()
            await asyncio.sleep(0)
    os.kill(pids[0], signal.SIGSTOP)
    return task, pids[0]


async def test_a_killed_reader_is_an_error_and_secrets_are_in_no_process(
    rig: AgentRig, lab: LabClient, vm: str
) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    disk = snapshot.disks[0]
    target = rig.target(ref, snapshot.moref, disk.device_key, "disk-0")
    task, pid = await _stopped_reader(rig, target, disk.capacity_bytes)
    assert_secret_in_no_process(lab.credentials()["password"], pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RemoteError) as failed:
        await asyncio.wait_for(task, 20)
    assert failed.value.reason in {"CAPTURE_FAILED", "READER_UNSUITABLE"}
    assert not os.listdir(rig.settings.sockets_dir / "lab-readers")  # noqa: PTH208  # ASYNC240 asks for it


async def test_closing_the_call_ends_reader_and_engine(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    disk = snapshot.disks[0]
    target = rig.target(ref, snapshot.moref, disk.device_key, "disk-0")
    task, pid = await _stopped_reader(rig, target, disk.capacity_bytes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(15):
        while children_running("nbdkit", str(rig.home)):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)
    areas, _, _ = await rig.plan(ref, snapshot.moref, disk.device_key)
    copied = await rig.capture(target, areas)
    assert copied.done is not None


async def test_a_newer_attempt_takes_the_capture_over(rig: AgentRig, vm: str) -> None:
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    disk = snapshot.disks[0]
    old = rig.target(ref, snapshot.moref, disk.device_key, "disk-0")
    task, pid = await _stopped_reader(rig, old, disk.capacity_bytes)
    new = rig.target(ref, snapshot.moref, disk.device_key, "disk-0", holder=rig.holder(attempt=2))
    taking_over = asyncio.create_task(rig.capture(new, [Extent(0, disk.capacity_bytes)]))
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGCONT)
    copied = await asyncio.wait_for(taking_over, 30)
    assert copied.done is not None
    with pytest.raises(RemoteError):
        await task
    with pytest.raises(RemoteError) as stale:
        await rig.capture(old, [Extent(0, MIB)])
    assert stale.value.reason == "STALE_ATTEMPT"


async def test_wrong_password_certificate_and_address_have_their_reasons(
    rig: AgentRig, lab: LabClient, short_tmp: Path
) -> None:
    right = lab.credentials()
    no_pem = {**right, "certificate": None}
    cases = [
        ({**right, "password": "wrong"}, "VCENTER_LOGIN_REFUSED"),
        ({**no_pem, "sha256": "00" * 32}, "VCENTER_CERTIFICATE_CHANGED"),
        ({**right, "certificate": str(short_tmp / "none.pem")}, "VCENTER_CERTIFICATE_CHANGED"),
        ({**right, "certificate": _other_certificate(short_tmp)}, "VCENTER_CERTIFICATE_CHANGED"),
        ({**right, "port": 1}, "VCENTER_UNAVAILABLE"),
    ]
    for account, reason in cases:
        write_vcenters(rig.settings.vcenters_file, account)
        with pytest.raises(RemoteError) as failed:
            await rig.list_vms()
        assert failed.value.reason == reason, account
    write_vcenters(rig.settings.vcenters_file, no_pem)
    await rig.list_vms()
    rig.settings.vcenters_file.chmod(0o640)
    with pytest.raises(RemoteError) as failed:
        await rig.list_vms()
    assert failed.value.reason == "VCENTER_FILE_INVALID"
    rig.settings.vcenters_file.unlink()
    with pytest.raises(RemoteError) as failed:
        await rig.list_vms()
    assert failed.value.reason == "NO_VCENTER"


def _other_certificate(directory: Path) -> str:
    (directory / "other").mkdir()
    return str(ensure_certificate(directory / "other", "127.0.0.1")[0])


async def test_a_pinned_fingerprint_is_enough_to_capture(rig: AgentRig, lab: LabClient, vm: str) -> None:
    write_vcenters(rig.settings.vcenters_file, {**lab.credentials(), "certificate": None})
    ref = await rig.ref(vm)
    snapshot = await rig.create_snapshot(ref)
    disk = snapshot.disks[1]
    target = rig.target(ref, snapshot.moref, disk.device_key, "disk-1")
    copied = await rig.capture(target, [Extent(0, disk.capacity_bytes)])
    assert copied.done is not None
