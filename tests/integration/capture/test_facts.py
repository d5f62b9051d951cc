"""What a right backup must honour (docs: cbt-facts), each number a test that names it, against the lab's vCenter.

Every backup here compares each layer with its snapshot, byte for byte (see `rehearsal`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rehearsal import Rehearsal, rehearsal
from sendense_backup.decisions import FullReason
from sendense_backup.model import COMPLETED, FAILED, Job, KnownVm, VmRef
from sendense_backup.policy import Selector
from sendense_backup.workflows import preparation
from sendense_lab.client import LabClient

BLOCK = 64 * 1024
TWO = ["1M:blank", "1M:blank@1"]
INCREMENT = "increment"


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


class Patient:
    """A VM, and the node that backs it up."""

    def __init__(self, node: Rehearsal, name: str, ref: VmRef) -> None:
        self.node = node
        self.lab = node.lab
        self.name = name
        self.ref = ref
        self._seed = 0

    def write(self, disk: int = 0, block: int = 3, blocks: int = 1) -> None:
        self._seed += 1
        self.lab.guest_write(self.name, disk, block * BLOCK, seed=self._seed, length=blocks * BLOCK)

    async def back_up(self, requested: str = "incremental", **options: Any) -> Job:
        job: Job = await self.node.back_up(self.name, self.ref, requested, **options)
        assert job.status == COMPLETED, job.error_message
        return job

    async def why(self, requested: str = "incremental") -> list[str]:
        """Backs up, and returns for each disk by label why it is full, or that it is an increment."""
        job = await self.back_up(requested)
        return [
            INCREMENT if disk.backup_type == "incremental" else disk.reason
            for disk in sorted(job.disks, key=lambda disk: disk.label)
        ]

    async def refused(self, **options: Any) -> Job:
        """Starts a backup that must fail, and asserts that it leaves nothing."""
        job: Job = await self.node.back_up(self.name, self.ref, **options)
        assert job.status == FAILED
        assert self.open_snapshots("sendense-") == []
        return job

    def open_snapshots(self, prefix: str = "") -> list[dict[str, Any]]:
        return [s for s in self.lab.snapshots(self.name) if not s["kept"] and s["name"].startswith(prefix)]

    def calls(self) -> Counter[str]:
        return Counter(each["method"] for each in self.lab.calls())

    async def log(self, level: str) -> list[str]:
        return [line.message for line in await self.node.log_of_last() if line.level == level]


Make = Callable[..., Any]


@pytest.fixture
async def node(lab: LabClient, memory_home: Path) -> AsyncIterator[Rehearsal]:
    lab.clear_faults()
    lab.set_page_areas(None)
    async with rehearsal(memory_home, lab) as running:
        yield running
    lab.clear_faults()
    lab.set_page_areas(None)


@pytest.fixture
async def make(node: Rehearsal) -> AsyncIterator[Make]:
    """Makes a VM and returns it as a patient."""
    made: list[str] = []

    async def make_one(disks: list[str] = TWO, **options: Any) -> Patient:
        name = f"vm-{len(made)}"
        node.lab.create_vm(name, disks, **options)
        made.append(name)
        return Patient(node, name, await node.ref(name))

    yield make_one
    for name in made:
        node.lab.delete_vm(name)


# -- change tracking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("areas", [1, 2, 7])
async def test_fact_01_areas_are_asked_page_by_page_to_the_end_and_not_at_it(make: Make, areas: int) -> None:
    vm = await make(["2M:blank"])
    await vm.back_up()
    for block in range(0, 32, 2):
        vm.write(block=block)
    vm.lab.set_page_areas(areas)
    vm.lab.calls(reset=True)
    assert await vm.why() == [INCREMENT]
    asked = vm.calls()["QueryChangedDiskAreas"]
    assert asked == 16 // areas + (1 if 16 % areas else 0) + (1 if 16 % areas == 0 and asked > 16 // areas else 0)


@pytest.mark.parametrize("kind", ["cbt-zero-length", "cbt-wrong-start", "cbt-past-end"])
async def test_fact_01_an_answer_that_cannot_be_is_not_believed(make: Make, kind: str) -> None:
    vm = await make(["1M:blank"])
    await vm.back_up()
    vm.write()
    vm.lab.set_fault(kind)
    assert await vm.why() == [FullReason.AREAS_QUERY_FAILED.value]


async def test_fact_02_the_change_id_is_the_snapshots_and_an_empty_one_makes_the_next_a_full(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    vm.lab.set_fault("cbt-empty-id")
    vm.write()
    first = await vm.why()
    assert sorted(first) == sorted([FullReason.NO_CHANGE_ID.value, INCREMENT])
    vm.write()
    assert sorted(await vm.why()) == sorted([FullReason.NO_CHANGE_ID.value, INCREMENT])
    assert await vm.why() == [INCREMENT, INCREMENT]


async def test_fact_02_a_job_that_failed_leaves_the_change_id_of_the_last_point(make: Make) -> None:
    vm = await make(["1M:blank"])
    await vm.back_up()
    vm.write(block=1)
    vm.lab.set_fault("api-error", method="QueryChangedDiskAreas", error="HostCommunication", times=None)
    vm.lab.set_fault("api-error", method="RemoveSnapshot_Task", error="HostCommunication", times=None)
    await vm.node.back_up(vm.name, vm.ref)  # whatever becomes of it
    vm.lab.clear_faults()
    vm.write(block=2)
    await vm.back_up()  # compared with the snapshot: block 1 is in it


async def test_fact_03_another_epoch_is_a_reset_of_that_disk_only(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    vm.lab.reset_tracking(vm.name, 1)
    vm.write(disk=1)
    assert await vm.why() == [INCREMENT, FullReason.CHANGE_TRACKING_RESET.value]
    assert await vm.why() == [INCREMENT, INCREMENT]


@pytest.mark.parametrize("error", ["FileFault", "InvalidArgument"])
async def test_fact_04_a_query_that_faults_makes_a_full_loudly(make: Make, error: str) -> None:
    vm = await make()
    await vm.back_up()
    vm.write(disk=0)
    vm.write(disk=1)
    vm.lab.set_fault("cbt-error", error=error, query="changed")
    found = await vm.why()
    assert sorted(found) == sorted([FullReason.AREAS_QUERY_FAILED.value, INCREMENT])
    assert [line for line in await vm.log("warning") if error in line and "becomes a full" in line]


async def test_fact_05_a_full_copies_what_is_allocated_and_all_when_that_is_not_known(make: Make) -> None:
    vm = await make(["4M:blank"])
    vm.write(block=5)
    await vm.back_up()
    (disk,) = (await vm.back_up("full")).disks
    assert disk.total_bytes == BLOCK
    vm.lab.set_fault("cbt-error", query="allocated")
    (disk,) = (await vm.back_up("full")).disks
    assert disk.total_bytes == disk.capacity_bytes


async def test_fact_06_tracking_is_turned_on_with_a_stun_cycle_and_works_at_once(make: Make) -> None:
    vm = await make()
    vm.lab.calls(reset=True)
    await vm.back_up()
    assert vm.calls()["CreateSnapshot_Task"] == 2  # the stun cycle, and the backup's own
    assert vm.calls()["RemoveSnapshot_Task"] == 2
    vm.write()
    assert await vm.why() == [INCREMENT, INCREMENT]


async def test_fact_06_a_vm_that_is_off_needs_no_stun_cycle(make: Make) -> None:
    vm = await make()
    vm.lab.power_off(vm.name)
    vm.lab.calls(reset=True)
    await vm.back_up()
    assert vm.calls()["CreateSnapshot_Task"] == 1
    vm.lab.power_on(vm.name)
    vm.write()
    assert await vm.why() == [INCREMENT, INCREMENT]


async def test_fact_06_tracking_is_not_turned_on_while_the_vm_has_a_snapshot(make: Make) -> None:
    vm = await make()
    vm.lab.create_snapshot(vm.name, "foreign")
    assert await vm.why() == [FullReason.FIRST_BACKUP.value] * 2
    assert not vm.lab.vm(vm.name)["change_tracking"]
    assert [line for line in await vm.log("warning") if "change tracking stays off" in line]
    assert await vm.why() == [FullReason.NO_CHANGE_ID.value] * 2
    vm.lab.remove_snapshot(vm.name, "foreign")
    assert await vm.why() == [FullReason.NO_CHANGE_ID.value] * 2  # tracked from here on
    assert await vm.why() == [INCREMENT, INCREMENT]


async def test_fact_06_hardware_4_knows_no_tracking_and_each_backup_is_full(make: Make) -> None:
    vm = await make(hardware_version=4)
    assert await vm.why() == [FullReason.FIRST_BACKUP.value] * 2
    assert await vm.why() == [FullReason.NO_CHANGE_ID.value] * 2
    assert [line for line in await vm.log("warning") if "does not support change tracking" in line]


async def test_fact_07_a_disk_that_grew_or_was_recreated_is_full_and_the_other_is_not(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    vm.lab.resize_disk(vm.name, 1, "2M")
    assert await vm.why() == [INCREMENT, FullReason.CAPACITY_CHANGED.value]
    vm.lab.recreate_disk(vm.name, 0)
    assert sorted(await vm.why()) == sorted([FullReason.DISK_ADDED.value, INCREMENT])


async def test_fact_07_neither_order_nor_slot_nor_another_controller_changes_anything(make: Make) -> None:
    vm = await make(["1M:blank", "1M:blank", "1M:blank@1"])
    for disk in range(3):
        vm.write(disk=disk, block=disk)
    await vm.back_up()
    vm.lab.move_disk(vm.name, 0, position=2)
    for disk in range(3):
        vm.write(disk=disk, block=8 + disk)
    assert await vm.why() == [INCREMENT] * 3
    vm.lab.add_disk(vm.name, "1M:blank@1")
    assert Counter(await vm.why()) == {INCREMENT: 3, FullReason.DISK_ADDED.value: 1}
    vm.lab.remove_disk(vm.name, 1)
    assert await vm.why() == [INCREMENT] * 3


# -- snapshots --------------------------------------------------------------------------------------------------------


async def test_fact_09_all_disks_are_of_one_snapshot_without_memory(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    vm.lab.calls(reset=True)
    await vm.back_up()
    assert vm.calls()["CreateSnapshot_Task"] == 1


@pytest.mark.parametrize("error", ["ApplicationQuiesceFault", "FilesystemQuiesceFault"])
async def test_fact_09_a_guest_that_cannot_quiesce_gives_a_crash_consistent_backup_that_says_so(
    make: Make, error: str
) -> None:
    vm = await make()
    vm.lab.set_fault("quiesce", error=error)
    job = await vm.back_up(quiesce=True)
    assert job.consistency == "crash-consistent"
    assert error in job.consistency_note
    assert [line for line in await vm.log("warning") if "could not be quiesced" in line]
    vm.lab.clear_faults()
    job = await vm.back_up(quiesce=True)
    assert (job.consistency, job.consistency_note) == ("quiesced", "")
    job = await vm.back_up()
    assert (job.consistency, job.consistency_note) == ("crash-consistent", "")


async def test_fact_09_quiescing_a_vm_that_is_off_is_noted(make: Make) -> None:
    vm = await make()
    vm.lab.power_off(vm.name)
    job = await vm.back_up(quiesce=True)
    assert (job.consistency, job.consistency_note) == ("crash-consistent", "the VM is off, or its tools do not run")


async def test_fact_10_the_snapshot_names_product_and_job_and_says_whose_it_is(make: Make) -> None:
    vm = await make()
    seen: list[dict[str, Any]] = []
    job = await vm.back_up(frozen=lambda _: seen.extend(vm.open_snapshots()))
    (snapshot,) = seen
    assert snapshot["name"] == f"sendense-{job.backup_id}"
    said = json.loads(snapshot["description"])
    assert (said["job"], said["installation"]) == (job.backup_id, "rehearsal")


async def test_fact_10_a_snapshot_that_cannot_be_removed_is_an_alert_until_it_is_gone(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    vm.lab.set_fault("snapshot-remove", error="FileLocked")
    job = await vm.back_up()
    assert "FileLocked" in job.alert
    assert vm.name in job.alert
    assert len(vm.open_snapshots("sendense-")) == 1
    vm.lab.clear_faults()
    await vm.back_up()  # removes what was left before it makes its own
    assert vm.open_snapshots() == []
    assert (await vm.node.catalogue.running.read(job.backup_id)).alert == ""


async def test_fact_10_disks_that_need_consolidation_are_an_alert_until_they_do_not(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    vm.node.set(retry_seconds=0.3)  # it is tried again, and stays as it is
    vm.lab.set_fault("consolidation", error="FileLocked")
    job = await vm.back_up()
    assert vm.lab.vm(vm.name)["consolidation_needed"]
    assert "consolidat" in job.alert
    vm.lab.clear_faults()
    await vm.back_up()
    assert not vm.lab.vm(vm.name)["consolidation_needed"]
    assert (await vm.node.catalogue.running.read(job.backup_id)).alert == ""


async def test_fact_10_a_foreign_snapshot_with_our_name_is_never_removed(make: Make) -> None:
    vm = await make()
    job = await vm.back_up()
    vm.lab.create_snapshot(vm.name, f"sendense-{job.backup_id}", description="mine, hands off")
    vm.lab.create_snapshot(
        vm.name,
        "sendense-other",
        description=json.dumps({"installation": "another", "job": job.backup_id, "attempt": 1}),
    )
    await vm.back_up()
    assert len(vm.open_snapshots()) == 2


async def test_fact_10_a_snapshot_of_ours_that_the_catalogue_forgot_goes_after_a_day(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalogue was restored from a copy that does not know the job any more."""
    vm = await make()
    await vm.back_up()
    forgotten = await vm.node.agent.create_snapshot(vm.ref, vm.node.holder("backup-forgotten", 3), quiesce=False)
    await vm.back_up()
    assert [each["moref"] for each in vm.open_snapshots()] == [forgotten.moref]  # it may be somebody's who runs still
    monkeypatch.setattr(preparation, "FORGOTTEN_AFTER", timedelta(0))
    await vm.back_up()
    assert vm.open_snapshots() == []
    assert [line for line in await vm.log("warning") if "forgotten snapshot" in line]


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ("1M:blank,independent", "independent disk"),
        ("1M:blank,rdm", "physical raw device mapping"),
    ],
)
async def test_fact_11_a_disk_that_no_snapshot_holds_is_skipped_and_reported(
    make: Make, disk: str, reason: str
) -> None:
    vm = await make(["1M:blank", disk])
    job = await vm.back_up()
    assert [(each.status, each.reason) for each in job.disks] == [
        ("completed", FullReason.FIRST_BACKUP.value),
        ("skipped", reason),
    ]
    assert [line for line in await vm.log("warning") if f"is skipped: {reason}" in line]
    assert await vm.why() == [INCREMENT, reason]


async def test_fact_11_a_vm_that_shares_a_disk_or_a_bus_is_refused_before_anything_is_tried(make: Make) -> None:
    vm = await make()
    vm.lab.share_bus(vm.name, 1, "physical")
    job = await vm.refused()
    assert job.error_reason == "DISK_SHARED"
    assert "Hard disk 2" in job.error_message
    vm.lab.share_bus(vm.name, 1, "none")
    await vm.back_up()
    other = await make(["1M:blank", "1M:blank,multi-writer"])
    assert (await other.refused()).error_reason == "DISK_SHARED"


@pytest.mark.parametrize("disks", [[], ["1M:blank,independent"]])
async def test_fact_11_a_vm_without_a_disk_to_back_up_is_refused(make: Make, disks: list[str]) -> None:
    vm = await make(disks, diskless=not disks)
    assert (await vm.refused()).error_reason == "NO_DISKS"


async def test_fact_11_a_template_is_refused(make: Make) -> None:
    vm = await make()
    vm.lab.set_vm(vm.name, template=True)
    assert (await vm.refused()).error_reason == "VM_IS_TEMPLATE"


async def test_fact_11_a_chain_that_is_too_deep_is_refused(make: Make) -> None:
    vm = await make(["1M:blank"])
    for number in range(4):
        vm.lab.create_snapshot(vm.name, f"s{number}")
    vm.node.set(max_snapshots=3)
    assert (await vm.refused()).error_reason == "TOO_MANY_SNAPSHOTS"


async def test_fact_12_a_datastore_with_too_little_room_is_refused(make: Make) -> None:
    vm = await make()
    vm.node.set(min_datastore_free_bytes=1 << 30)
    vm.lab.set_fault("datastore-free", bytes=1 << 20)
    job = await vm.refused()
    assert job.error_reason == "DATASTORE_FULL"
    vm.lab.clear_faults()
    await vm.back_up()


# -- identity ---------------------------------------------------------------------------------------------------------


async def test_fact_18_a_vm_that_was_registered_again_is_the_same_vm(make: Make) -> None:
    vm = await make()
    await vm.back_up()
    before = vm.lab.vm(vm.name)["moref"]
    vm.lab.register_again(vm.name)
    assert vm.lab.vm(vm.name)["moref"] != before
    vm.write()
    assert await vm.why() == [INCREMENT, INCREMENT]


async def test_fact_18_two_vms_of_one_bios_uuid_are_two_vms(make: Make) -> None:
    one = await make(["1M:blank"])
    two = await make(["1M:blank"], bios_uuid=one.lab.vm(one.name)["uuid"])
    assert one.ref != two.ref
    one.write(block=1)
    two.write(block=2)
    await one.back_up()
    await two.back_up()


async def test_a_policys_tag_selects_vms_by_their_custom_attributes(make: Make) -> None:
    one, two = await make(["1M:blank"]), await make(["1M:blank"])
    one.lab.set_vm(one.name, attributes={"Backup": "nightly", "Owner": "ann"})
    two.lab.set_vm(two.name, attributes={"Backup": "weekly", "Owner": "ann"})

    async def selected(tag: str) -> list[str]:
        return [vm.name for vm in await one.node.agent.list_vms("") if Selector(tag=tag).selects(KnownVm("lab", vm))]

    assert await selected("Backup=nightly") == [one.name]
    assert await selected("Owner=ann") == [one.name, two.name]
    assert await selected("Backup") == []
    two.lab.set_vm(two.name, attributes={"Backup": "nightly", "Owner": ""})
    assert await selected("Backup=nightly") == [one.name, two.name]
    assert await selected("Owner=ann") == [one.name]
    assert (await one.node.agent.inspect(one.ref)).tags == ("Backup=nightly", "Owner=ann")


# -- disks that the caller leaves out ---------------------------------------------------------------------------------


async def test_a_disk_is_left_out_by_label_key_or_uuid_and_full_when_it_is_in_again(make: Make) -> None:
    vm = await make()
    listed = vm.lab.vm(vm.name)["disks"][1]
    for name in (listed["label"], str(listed["key"]), listed["uuid"]):
        job = await vm.back_up(exclude_disks=(name,))
        assert [each.status for each in job.disks] == ["completed", "skipped"]
        assert job.disks[1].reason == "excluded by the caller"
    vm.write(disk=1)
    assert await vm.why() == [INCREMENT, FullReason.DISK_ADDED.value]


async def test_leaving_out_a_disk_that_is_not_there_or_all_of_them_is_refused(make: Make) -> None:
    vm = await make()
    assert (await vm.refused(exclude_disks=("Hard disk 9",))).error_reason == "UNKNOWN_DISK"
    labels = tuple(each["label"] for each in vm.lab.vm(vm.name)["disks"])
    assert (await vm.refused(exclude_disks=labels)).error_reason == "NO_DISKS"


async def test_what_the_vm_is_made_of_is_kept_with_the_point(make: Make) -> None:
    vm = await make()
    job = await vm.back_up()
    point = await vm.node.repository.point(job.backup_id)
    kept = json.loads(point.hardware_json)
    assert kept["hardware"]["numCPU"] >= 1
    assert [each["key"] for each in kept["extraConfig"]] == ["nvram"]
    assert kept["firmware"] == "efi"
    assert kept["instanceUuid"] == vm.ref.vm_uuid
    assert kept["snapshot"]["alone"] is True
