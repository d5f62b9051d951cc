"""Whatever fails, the job ends with a reason and nothing is left behind. Parametrised over the workflow's own steps."""

from __future__ import annotations

import asyncio

import pytest
from backup_service import Client, cleaned, running, until
from backup_world import CLUSTER, World

from sendense.backup.v1 import backup_pb2
from sendense_backup.config import BackupSettings
from sendense_backup.workflows.backup import COMMIT, STEPS, UNSNAPSHOT
from sendense_backup.workflows.runtime import Observer
from sendense_rpc.errors import Kind, SendenseError

pytest_plugins = ("backup_fixtures",)

DISK_STEPS = ("decide", "layer", "plan", "turn_full", "export", "capture", "close", "seal", "audit")


def points() -> list[tuple[str, str]]:
    """Every step of the workflow with the names that `run` gives it, before and after its work."""
    names = [f"{step.name}.0" if step.name in DISK_STEPS else step.name for step in STEPS]
    return [(name, moment) for name in names for moment in ("begins", "executed")]


class Saboteur(Observer):
    """Fails one step of each job."""

    def __init__(self) -> None:
        self.plan: dict[str, tuple[str, str]] = {}
        self.hit: set[str] = set()

    def _strike(self, backup_id: str, step: str, moment: str) -> None:
        vm = backup_id.removeprefix("backup-").rsplit("-", 1)[0]
        if self.plan.get(vm) == (step, moment) and vm not in self.hit:
            self.hit.add(vm)
            raise SendenseError("struck by the test", kind=Kind.INTERNAL, reason="STRUCK")

    async def begins(self, backup_id: str, step: str) -> None:
        self._strike(backup_id, step, "begins")

    async def executed(self, backup_id: str, step: str) -> None:
        self._strike(backup_id, step, "executed")


@pytest.mark.timeout(400)  # a job for each step, all at once
async def test_failure_at_each_step_releases_everything_and_says_why(settings: BackupSettings, world: World) -> None:
    saboteur = Saboteur()
    for number, point in enumerate(points()):
        saboteur.plan[f"vm{number}"] = point
        vm = world.add_vm(f"vm{number}")
        world.seed_point(vm)
        vm.write(0, 1, b"n")
        vm.plan_faults.append("AREAS_QUERY_FAILED")
    names = list(saboteur.plan)
    kept = {each.backup_id: world.point_contents(each.backup_id) for each in world.points}
    wrong: list[str] = []
    async with running(settings, saboteur) as client:
        ended = await client.all_ended([await client.start(name, "incremental") for name in names])
        for name, backup in zip(names, ended, strict=True):
            step, moment = saboteur.plan[name]
            made = step == UNSNAPSHOT.name or (step, moment) == (COMMIT.name, "executed")
            wanted = ("completed", "") if made else ("failed", "STRUCK")
            if (backup.status, backup.error_reason) != wanted:
                wrong.append(f"{step} {moment}: {backup.status} {backup.error_reason} {backup.error_message}")
        assert saboteur.hit == set(names)
        assert wrong == []
        await cleaned(world)
        assert {each: world.point_contents(each) for each in kept} == kept
        again = await client.run(names[0], "incremental")
        assert again.status == "completed"
        assert world.point_contents(again.backup_id) == [bytes(disk.content) for disk in world.vms[0].disks]


@pytest.mark.parametrize("reason", ["CBT_RESET", "AREAS_QUERY_FAILED"])
async def test_areas_that_cannot_be_had_make_that_disk_a_full_loudly(client: Client, world: World, reason: str) -> None:
    vm = world.add_vm("web", disks=2)
    first = await client.run("web")
    vm.write(0, 1, b"n")
    vm.plan_faults.append(reason)
    second = await client.run("web", "incremental")
    assert second.status == "completed"
    words = {"CBT_RESET": "change tracking reset", "AREAS_QUERY_FAILED": "areas query failed"}[reason]
    assert [(disk.backup_type, disk.reason) for disk in second.disks] == [
        ("full", words),
        ("incremental", f"changed since {first.backup_id}"),
    ]
    assert second.backup_type == "incremental"
    assert world.point_contents(second.backup_id) == [bytes(disk.content) for disk in vm.disks]
    assert any(entry.level == "warning" and words in entry.message for entry in await client.log(second.backup_id))


async def test_a_reset_seen_in_the_change_ids_makes_every_disk_full(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    await client.run("web")
    vm.disks[0].epoch = "99999999-9999-9999-9999-999999999999"
    second = await client.run("web", "incremental")
    assert (second.backup_type, second.disks[0].reason) == ("full", "change tracking reset")
    assert second.parent_backup_id == ""


async def test_a_broken_copy_is_resumed_and_copies_only_what_is_missing(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    world.faults["Capture.batch"] = [
        SendenseError("cut", kind=Kind.UNAVAILABLE, reason="LINK_CUT", retryable=True) for _ in range(2)
    ]
    backup = await client.run("web")
    assert backup.status == "completed", backup.error_message
    assert world.point_contents(backup.backup_id) == [bytes(vm.disks[0].content)]
    layer = next(iter(world.layers.values()))
    assert len(layer.batches) == 8
    assert len(world.export_names) == 3
    assert world.clean, world.left()


async def test_a_lost_answer_of_the_journal_costs_no_batch(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    lost = SendenseError("lost", kind=Kind.ABORTED, reason="LOST", retryable=False)
    world.faults["AppendJournal.answer"] = [lost]
    failed = await client.run("web")
    assert (failed.status, failed.error_reason) == ("failed", "LOST")
    passing = SendenseError("lost", kind=Kind.UNAVAILABLE, reason="SERVICE_UNAVAILABLE", retryable=True)
    world.faults["AppendJournal.answer"] = [passing]
    backup = await client.run("web")
    assert backup.status == "completed"
    assert world.point_contents(backup.backup_id) == [bytes(vm.disks[0].content)]


async def test_a_read_error_fails_the_job_and_is_not_resumed(client: Client, world: World) -> None:
    world.add_vm("web")
    world.faults["Capture.batch"] = [SendenseError("bad sector", kind=Kind.ABORTED, reason="CAPTURE_FAILED")]
    backup = await client.run("web")
    assert (backup.status, backup.error_reason) == ("failed", "CAPTURE_FAILED")
    assert "bad sector" in backup.error_message
    await cleaned(world)
    assert world.points == []


async def test_a_lost_answer_of_the_commit_is_no_failure(client: Client, world: World) -> None:
    world.add_vm("web")
    world.faults["CommitPoint.answer"] = [SendenseError("lost", kind=Kind.INTERNAL, reason="LOST")]
    backup = await client.run("web")
    assert (backup.status, backup.error_reason) == ("completed", "")
    await cleaned(world)


@pytest.mark.parametrize("call", ["CreateSnapshot.answer", "CreateLayer.answer", "CreateFileExport.answer"])
async def test_what_was_made_without_an_answer_is_given_back(client: Client, world: World, call: str) -> None:
    world.add_vm("web")
    world.faults[call] = [SendenseError("lost", kind=Kind.INTERNAL, reason="LOST")]
    backup = await client.run("web")
    assert (backup.status, backup.error_reason) == ("failed", "LOST")
    await cleaned(world)


async def test_a_snapshot_is_removed_when_the_agent_is_back(client: Client, world: World) -> None:
    world.add_vm("web")
    world.holds["Capture"] = asyncio.Event()
    backup = await client.start("web")
    await asyncio.wait_for(world.held.wait(), 20)
    world.agent_connected = False
    world.faults["Capture"] = [SendenseError("gone", kind=Kind.ABORTED, reason="CAPTURE_FAILED")]
    world.holds.pop("Capture").set()
    ended = await client.ended(backup.backup_id)
    assert ended.status == "failed"
    assert len(world.vms[0].snapshots) == 1
    assert any("not given back yet" in entry.message for entry in await client.log(backup.backup_id))
    world.agent_connected = True
    await cleaned(world)


async def test_a_snapshot_that_stays_after_the_commit_is_an_alert_and_goes_later(client: Client, world: World) -> None:
    world.add_vm("web")
    world.always["RemoveSnapshot"] = SendenseError("busy", kind=Kind.UNAVAILABLE, reason="BUSY", retryable=True)
    backup = await client.run("web")
    assert backup.status == "completed"
    assert any(
        entry.level == "error" and "could not be removed" in entry.message
        for entry in await client.log(backup.backup_id)
    )
    del world.always["RemoveSnapshot"]
    await cleaned(world)
    assert (await client.get(backup.backup_id)).status == "completed"


async def test_a_foreign_snapshot_is_never_touched(client: Client, world: World) -> None:
    vm = world.add_vm("web")
    vm.foreign_snapshots = 1
    world.faults["Capture"] = [SendenseError("gone", kind=Kind.ABORTED, reason="CAPTURE_FAILED")]
    assert (await client.run("web")).status == "failed"
    backup = await client.run("web")
    assert backup.status == "completed"
    assert vm.foreign_snapshots == 1
    entries = await client.log(backup.backup_id)
    assert any("change tracking stays off" in entry.message for entry in entries)


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("VM_IS_TEMPLATE", "template"),
        ("NO_DISKS", "skip"),
        ("TOO_MANY_SNAPSHOTS", "snapshots"),
        ("DATASTORE_FULL", "datastore"),
        ("NO_ROOM", "room"),
    ],
)
async def test_what_must_not_be_backed_up_is_refused_with_the_reason(
    client: Client, world: World, reason: str, spoil: str
) -> None:
    vm = world.add_vm("web")
    if spoil == "template":
        vm.template = True
    elif spoil == "skip":
        vm.disks[0].skip_reason = "independent disk"
    elif spoil == "snapshots":
        vm.foreign_snapshots = 31
    elif spoil == "datastore":
        vm.free_bytes = 1000
    else:
        world.room = CLUSTER
    backup = await client.run("web")
    assert (backup.status, backup.error_reason) == ("failed", reason)
    assert world.points == []
    await cleaned(world)


async def test_a_disk_that_cannot_be_captured_is_skipped_and_reported(client: Client, world: World) -> None:
    vm = world.add_vm("web", disks=2)
    vm.disks[1].skip_reason = "independent disk"
    backup = await client.run("web")
    assert backup.status == "completed"
    assert [(disk.status, disk.reason) for disk in backup.disks] == [
        ("completed", "first backup"),
        ("skipped", "independent disk"),
    ]


async def test_a_silent_capture_is_broken_off_and_can_be_cancelled(client: Client, world: World) -> None:
    world.add_vm("web")
    world.holds["Capture"] = asyncio.Event()
    backup = await client.start("web")
    await asyncio.wait_for(world.held.wait(), 20)
    request = backup_pb2.CancelBackupRequest(backup_id=backup.backup_id)
    await client.peer.call(client.backups.CancelBackup, request)
    assert (await client.ended(backup.backup_id)).status == "cancelled"
    await cleaned(world)
    await until(lambda: not world.exports, "the export is gone")
