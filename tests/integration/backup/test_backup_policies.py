"""Policies: what is due runs once, missed runs are caught up once, failures are tried again, retention follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from backup_process import kill, service_process
from backup_service import Client, cleaned, running, until
from backup_world import World
from past_backups import past_backups

from sendense.backup.v1 import policy_pb2
from sendense_backup.config import BackupSettings
from sendense_backup.policy import PolicyRules, Selector
from sendense_backup.store import Catalogue
from sendense_rpc.errors import Kind, RemoteError

pytest_plugins = ("backup_fixtures",)

NOON = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
async def catalogue(settings: BackupSettings) -> AsyncIterator[Catalogue]:
    made = Catalogue(settings.catalogue_url)
    yield made
    await made.close()


@pytest.fixture
async def client(settings: BackupSettings, world: World) -> AsyncIterator[Client]:
    async with running(settings.model_copy(update={"tick_seconds": 0.2})) as made:
        yield made


def spec(**values: Any) -> policy_pb2.PolicySpec:
    chosen = {"name": "nightly", "cron": "30 1 * * *", "include": [policy_pb2.VmSelector(pattern="web-*")], **values}
    return policy_pb2.PolicySpec(**chosen)


async def create(client: Client, **values: Any) -> policy_pb2.Policy:
    request = policy_pb2.CreatePolicyRequest(spec=spec(**values))
    return await client.peer.call(client.policies.CreatePolicy, request)


async def run_now(client: Client, name: str = "nightly") -> policy_pb2.PolicyRun:
    await client.peer.call(client.policies.RunPolicy, policy_pb2.RunPolicyRequest(policy_id=name))
    return await ended_run(client, name)


async def ended_run(client: Client, name: str = "nightly") -> policy_pb2.PolicyRun:
    async with asyncio.timeout(120):
        while True:
            request = policy_pb2.ListPolicyRunsRequest(policy_id=name)
            runs = (await client.peer.call(client.policies.ListPolicyRuns, request)).runs
            if runs and runs[0].status in ("completed", "failed"):
                return runs[0]
            await asyncio.sleep(0.1)


async def refused(awaitable: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return caught.value


async def test_a_policy_backs_up_what_it_means_and_nothing_else(client: Client, world: World) -> None:
    for name in ("web-1", "web-2", "db"):
        world.add_vm(name)
    await create(client)
    first = await run_now(client)
    assert (first.status, first.vms_found, first.summary.completed) == ("completed", 2, 2)
    assert sorted(point.vm_name for point in world.points) == ["web-1", "web-2"]
    second = await run_now(client)
    assert second.summary.completed == 2
    kinds = [(await client.get(point.backup_id)).backup_type for point in world.points]
    assert kinds == ["full", "full", "incremental", "incremental"]
    await cleaned(world)


async def test_retention_follows_each_backup_and_takes_only_that_vms_points(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    vm = world.add_vm("web-1")
    other = world.add_vm("web-9")
    past = await past_backups(catalogue, world, vm, 3)
    kept = await past_backups(catalogue, world, other, 2)
    include = [policy_pb2.VmSelector(name="web-1")]
    await create(client, include=include, retention=policy_pb2.Retention(keep_last=2), verify_every_days=1)
    run = await run_now(client)
    assert run.summary.completed == 1
    left = [point.backup_id for point in world.points if point.vm_uuid == vm.uuid]
    assert left[0] == past[-1].backup_id
    assert len(left) == 2
    assert len(world.verifications) == 1
    assert [point.backup_id for point in world.points if point.vm_uuid == other.uuid] == [job.backup_id for job in kept]
    # What the deleted full held went into the oldest point that is left: it is the full now, and no new one is due.
    oldest = await client.get(left[0])
    assert (oldest.backup_type, oldest.parent_backup_id) == ("full", "")
    again = await run_now(client)
    assert again.summary.completed == 1
    newest = [point.backup_id for point in world.points if point.vm_uuid == vm.uuid][-1]
    assert (await client.get(newest)).backup_type == "incremental"


async def test_a_synthetic_full_is_made_by_consolidation_when_it_is_due(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    vm = world.add_vm("web-1")
    await past_backups(catalogue, world, vm, 3)
    await create(client, full_every_days=7, synthetic_full=True)
    await run_now(client)
    (point,) = world.points
    backup = await client.get(point.backup_id)
    assert backup.backup_type == "full"
    assert world.point_contents(point.backup_id) == [bytes(disk.content) for disk in vm.disks]
    again = await run_now(client)
    assert again.summary.completed == 1
    assert len(world.points) == 2, "a full of today is not due again"


async def test_a_failed_backup_is_tried_again_as_often_as_the_policy_says(client: Client, world: World) -> None:
    vm = world.add_vm("web-1")
    vm.capture_faults = ["CAPTURE_FAILED", "CAPTURE_FAILED"]
    await create(client, retries=2, retry_pause_seconds=1)
    run = await run_now(client)
    assert (run.summary.completed, run.summary.failed, run.summary.retried) == (1, 0, 2)
    vm.write(0, 7, b"changed")
    vm.capture_faults = ["CAPTURE_FAILED"] * 9
    await client.peer.call(
        client.policies.UpdatePolicy,
        policy_pb2.UpdatePolicyRequest(policy_id="nightly", spec=spec(retries=1, retry_pause_seconds=1)),
    )
    run = await run_now(client)
    assert (run.summary.completed, run.summary.failed, run.summary.retried) == (0, 1, 1)
    await cleaned(world)


async def test_a_vm_whose_other_job_runs_is_left_out_and_named(client: Client, world: World) -> None:
    world.add_vm("web-1")
    world.holds["Capture"] = asyncio.Event()
    busy = await client.start("web-1")
    await asyncio.wait_for(world.held.wait(), 60)
    await create(client)
    run = await run_now(client)
    assert run.summary.skipped == 1
    assert busy.backup_id in run.message
    world.holds.pop("Capture").set()
    assert (await client.ended(busy.backup_id)).status == "completed"


async def test_a_run_that_means_no_vm_says_so(client: Client, world: World) -> None:
    del world
    await create(client)
    run = await run_now(client)
    assert (run.status, run.vms_found) == ("completed", 0)
    assert "no VM is meant" in run.message


async def test_the_plan_says_what_and_why_and_changes_nothing(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    vm = world.add_vm("web-1")
    vm.tracking = True
    past = await past_backups(catalogue, world, vm, 3, moved=5000, first=datetime.now(UTC) - timedelta(days=3))
    world.add_vm("web-2")
    await create(client, full_every_days=30, retention=policy_pb2.Retention(keep_last=2), time_zone="Europe/Berlin")
    points = list(world.points)
    plan = await client.peer.call(client.policies.PlanPolicy, policy_pb2.PlanPolicyRequest(policy_id="nightly"))
    assert len(plan.next_runs) == 10
    old, new = plan.vms
    assert (old.backup_type, old.estimated_bytes, old.estimate_basis) == (
        "incremental",
        5000,
        "median of the last 2 increments",
    )
    assert old.latest_backup_id == past[-1].backup_id
    assert list(old.retention_removes) == [past[0].backup_id]
    assert old.retention_freed_bytes == plan.freed_bytes == 1000
    assert (new.backup_type, new.reason, new.latest_backup_id) == ("full", "first backup", "")
    assert world.points == points
    assert "StartBackup" not in world.calls
    request = policy_pb2.PlanPolicyRequest(policy_id="nightly", page_size=1)
    page = await client.peer.call(client.policies.PlanPolicy, request)
    assert ([each.vm_name for each in page.vms], page.next_page_token) == (["web-1"], "1")


async def test_bad_policies_are_refused_naming_the_field_and_leave_nothing(client: Client, world: World) -> None:
    del world
    window = policy_pb2.TimeWindow(start="10:00", end="10:00")
    wrong = [
        ({"cron": "every day"}, "BAD_CRON", "cron"),
        ({"time_zone": "Mars/Olympus"}, "UNKNOWN_ZONE", "time_zone"),
        ({"window": window}, "WINDOW_NEVER_OPENS", "window"),
        ({"include": []}, "POLICY_WITHOUT_VMS", "include"),
        ({"include": [policy_pb2.VmSelector()]}, "INVALID_FIELD", "include[0]"),
        ({"retries": -1}, "INVALID_FIELD", "retries"),
        ({"retention": policy_pb2.Retention(keep_last=-1)}, "INVALID_FIELD", "retention.keep_last"),
        ({"name": "a/b"}, "INVALID_FIELD", "spec.name"),
        ({"synthetic_full": True}, "INVALID_FIELD", "full_every_days"),
    ]
    for values, reason, field in wrong:
        error = await refused(create(client, **values))
        assert (error.kind, error.reason, error.metadata["field"]) == (Kind.INVALID_ARGUMENT, reason, field)
    assert (await refused(create(client, repository="nowhere"))).reason == "REPOSITORY_NOT_FOUND"
    await create(client)
    assert (await refused(create(client))).reason == "POLICY_EXISTS"
    for missing in (
        client.peer.call(client.policies.GetPolicy, policy_pb2.GetPolicyRequest(policy_id="other")),
        client.peer.call(client.policies.DeletePolicy, policy_pb2.DeletePolicyRequest(policy_id="other")),
    ):
        assert (await refused(missing)).reason == "POLICY_NOT_FOUND"
    listed = await client.peer.call(client.policies.ListPolicies, policy_pb2.ListPoliciesRequest())
    assert [each.spec.name for each in listed.policies] == ["nightly"]
    await client.peer.call(client.policies.DeletePolicy, policy_pb2.DeletePolicyRequest(policy_id="nightly"))
    await create(client)  # the name is free again


async def test_what_was_missed_is_caught_up_once_and_what_is_due_is_taken_once(catalogue: Catalogue) -> None:
    rules = PolicyRules(include=(Selector(pattern="*"),))
    policy = await catalogue.policies.create("hourly", "0 * * * *", rules, enabled=True, moment=NOON)
    assert await catalogue.policies.take_due(NOON + timedelta(minutes=59)) == []
    later = NOON + timedelta(days=2, minutes=30)
    others = [Catalogue(str(catalogue.database.engine.url)) for _ in range(3)]
    taken = await asyncio.gather(*(each.policies.take_due(later) for each in (catalogue, *others)))
    for each in others:
        await each.close()
    (run,) = [run for one in taken for run in one]
    assert (run.due_at, run.missed) == (NOON + timedelta(days=2), 47)
    assert (await catalogue.policies.get("hourly")).next_run_at == NOON + timedelta(days=2, hours=1)
    assert await catalogue.policies.take_due(later + timedelta(minutes=1)) == []
    assert policy.next_run_at == NOON + timedelta(hours=1)


async def test_a_clock_that_was_set_back_a_day_delays_no_run_by_a_day(catalogue: Catalogue) -> None:
    rules = PolicyRules(include=(Selector(pattern="*"),))
    wrong = NOON + timedelta(days=1)
    await catalogue.policies.create("nightly", "30 13 * * *", rules, enabled=True, moment=wrong)
    assert await catalogue.policies.take_due(NOON) == []
    assert (await catalogue.policies.get("nightly")).next_run_at == NOON.replace(hour=13, minute=30)
    (run,) = await catalogue.policies.take_due(NOON + timedelta(hours=2))
    assert (run.due_at, run.missed) == (NOON.replace(hour=13, minute=30), 0)


async def test_a_run_goes_on_after_the_service_died_in_the_middle_of_it(settings: BackupSettings, world: World) -> None:
    for number in range(6):
        world.add_vm(f"web-{number}")
    world.batch_pause = 0.05
    few = {"SENDENSE_BACKUP_TICK_SECONDS": "0.2", "SENDENSE_BACKUP_JOBS_AT_ONCE": "2"}
    async with service_process(settings, **few) as (process, client):
        await create(client)
        await client.peer.call(client.policies.RunPolicy, policy_pb2.RunPolicyRequest(policy_id="nightly"))
        await until(lambda: len(world.points) >= 2, "two VMs are backed up")
        await kill(process, settings)
    async with service_process(settings, **few) as (_, client):
        run = await ended_run(client)
    assert (run.vms_found, run.summary.completed) == (6, 6)
    assert sorted(point.vm_name for point in world.points) == [f"web-{number}" for number in range(6)]
    assert world.most_captures <= 2
