"""What is done to restore points, as jobs: each ends well, or fails with its reason and can be tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from backup_service import Client, cleaned, running, until
from backup_world import World
from past_backups import past_backups
from scenarios import SCENARIOS, Case, prepared, wrongs

from sendense.backup.v1 import job_pb2
from sendense_backup.config import BackupSettings
from sendense_backup.model import OPERATION_KINDS, SWEEP
from sendense_backup.store import Catalogue
from sendense_backup.store.operations import NewOperation
from sendense_backup.workflows.registry import WORKFLOWS
from sendense_backup.workflows.runtime import Observer
from sendense_rpc.errors import Kind, RemoteError, SendenseError

pytest_plugins = ("backup_fixtures",)


class Saboteur(Observer):
    """Fails one step of each job, once."""

    def __init__(self) -> None:
        self.plan: dict[str, tuple[str, str]] = {}

    def _strike(self, job_id: str, step: str, moment: str) -> None:
        vm = job_id.partition("-")[2].rsplit("-", 1)[0]
        if self.plan.get(vm) == (step, moment):
            del self.plan[vm]
            raise SendenseError("struck by the test", kind=Kind.INTERNAL, reason="STRUCK")

    async def begins(self, backup_id: str, step: str) -> None:
        self._strike(backup_id, step, "begins")

    async def executed(self, backup_id: str, step: str) -> None:
        self._strike(backup_id, step, "executed")


async def test_an_operation_that_fails_at_any_step_says_why_and_a_retry_completes_it(
    settings: BackupSettings, world: World
) -> None:
    saboteur = Saboteur()
    catalogue = Catalogue(settings.catalogue_url)
    cases: dict[str, tuple[str, Case]] = {}
    for kind in OPERATION_KINDS:
        for step in WORKFLOWS[kind].steps:
            for moment in ("begins", "executed"):
                name = f"vm{len(cases)}"
                cases[name] = kind, await prepared(name, kind, catalogue, world)
                saboteur.plan[name] = step.name, moment
    wrong: list[str] = []
    async with running(settings, saboteur) as client:
        for kind, case in cases.values():
            case.job_id = await SCENARIOS[kind].start(client, catalogue, world, case)
        for name, (kind, case) in cases.items():
            failed = await client.ended_job(case.job_id)
            if (failed.status, failed.error_reason) != ("failed", "STRUCK"):
                wrong.append(f"{name} {kind}: {failed.status} {failed.error_reason}")
            again = await client.peer.call(client.jobs.RetryJob, job_pb2.RetryJobRequest(job_id=case.job_id))
            assert again.retry_of == case.job_id
            ended = await client.ended_job(again.job_id)
            wrong += [f"{name} {kind} tried again: {each}" for each in wrongs(kind, case, world, ended.status)]
    await catalogue.close()
    assert saboteur.plan == {}
    assert wrong == []


@pytest.fixture
async def catalogue(settings: BackupSettings) -> Any:
    made = Catalogue(settings.catalogue_url)
    yield made
    await made.close()


async def refused(awaitable: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return caught.value


async def verify(client: Client, backup_id: str, **more: Any) -> job_pb2.Job:
    request = job_pb2.VerifyBackupRequest(backup_id=backup_id, **more)
    return await client.peer.call(client.jobs.VerifyBackup, request)


async def test_a_damaged_point_fails_its_verification_naming_the_range(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    (sound, damaged) = await past_backups(catalogue, world, world.add_vm("web"), 2)
    world.corrupt.add(damaged.backup_id)
    fine = await client.ended_job((await verify(client, sound.backup_id)).job_id)
    assert (fine.status, fine.result["integrity"]) == ("completed", "verified")
    bad = await client.ended_job((await verify(client, damaged.backup_id)).job_id)
    assert (bad.status, bad.error_reason) == ("failed", "POINT_CORRUPT")
    assert f"{damaged.backup_id} disk 0, data at 4096" in bad.error_message


async def test_a_verification_can_be_cancelled_and_the_same_request_is_one_job(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    (job,) = await past_backups(catalogue, world, world.add_vm("web"), 1)
    world.holds["WatchVerification.page"] = asyncio.Event()
    first = await verify(client, job.backup_id, request_id="mine")
    assert (await verify(client, job.backup_id, request_id="mine")).job_id == first.job_id
    await asyncio.wait_for(world.held.wait(), 60)
    busy = await refused(client.start("web"))
    assert (busy.kind, busy.reason, busy.metadata["backup_id"]) == (Kind.ABORTED, "BACKUP_RUNNING", first.job_id)
    await client.peer.call(client.jobs.CancelJob, job_pb2.CancelJobRequest(job_id=first.job_id))
    await until(lambda: world.verifications[first.job_id].state == "cancelled", "the repository was told")
    world.holds.pop("WatchVerification.page").set()
    ended = await client.ended_job(first.job_id)
    assert (ended.status, ended.error_reason) == ("cancelled", "CANCELLED")


async def test_what_the_repository_forgot_is_started_again_under_the_same_id(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    (job,) = await past_backups(catalogue, world, world.add_vm("web"), 1)
    lost = SendenseError("forgotten", kind=Kind.NOT_FOUND, reason="VERIFICATION_NOT_FOUND")
    gone = SendenseError("down", kind=Kind.UNAVAILABLE, reason="SERVICE_UNAVAILABLE", retryable=True)
    world.faults["WatchVerification"] = [lost, gone]
    ended = await client.ended_job((await verify(client, job.backup_id)).job_id)
    assert ended.status == "completed"
    assert world.calls.count("StartVerification") == 3


async def test_a_consolidation_makes_a_full_that_the_catalogue_knows(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    jobs = await past_backups(catalogue, world, world.add_vm("web"), 3)
    content = world.point_contents(jobs[-1].backup_id)
    request = job_pb2.ConsolidateBackupsRequest(first_backup_id=jobs[0].backup_id, last_backup_id=jobs[-1].backup_id)
    started = await client.peer.call(client.jobs.ConsolidateBackups, request)
    assert (await client.ended_job(started.job_id)).status == "completed"
    assert [each.backup_id for each in world.points] == [jobs[-1].backup_id]
    assert world.point_contents(jobs[-1].backup_id) == content
    assert (await client.get(jobs[-1].backup_id)).backup_type == "full"
    other = await past_backups(catalogue, world, world.add_vm("other"), 1)
    request = job_pb2.ConsolidateBackupsRequest(first_backup_id=other[0].backup_id, last_backup_id=jobs[-1].backup_id)
    mixed = await refused(client.peer.call(client.jobs.ConsolidateBackups, request))
    assert (mixed.kind, mixed.reason) == (Kind.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_deletion_waits_for_a_reader_that_came_meanwhile_and_says_for_whom(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    vm = world.add_vm("web")
    case = Case(vm, past=await past_backups(catalogue, world, vm, 3))
    world.holders.append("mount-7")
    started = await SCENARIOS["delete"].start(client, catalogue, world, case)

    async def told() -> list[str]:
        request = job_pb2.ListJobLogEntriesRequest(job_id=started)
        return [each.message for each in (await client.peer.call(client.jobs.ListJobLogEntries, request)).entries]

    async with asyncio.timeout(60):
        while "waits for mount-7" not in await told():  # noqa: ASYNC110  # another task writes it
            await asyncio.sleep(0.05)
    world.holders.clear()
    assert (await client.ended_job(started)).status == "completed"


async def test_the_list_holds_all_kinds_newest_first_and_pages(
    client: Client, world: World, catalogue: Catalogue
) -> None:
    (job,) = await past_backups(catalogue, world, world.add_vm("web"), 1)
    started = [job.backup_id]
    for _ in range(3):
        made = await verify(client, job.backup_id)
        await client.ended_job(made.job_id)
        started.append(made.job_id)
    seen: list[str] = []
    token = ""
    while True:
        request = job_pb2.ListJobsRequest(page_size=2, page_token=token, vm_name="web")
        page = await client.peer.call(client.jobs.ListJobs, request)
        seen += [each.job_id for each in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert seen == started[::-1]
    backups = await client.peer.call(client.jobs.ListJobs, job_pb2.ListJobsRequest(kind="backup"))
    assert [each.job_id for each in backups.jobs] == [job.backup_id]
    with pytest.raises(RemoteError, match="there is no job"):
        await client.job("verify-%")
    assert (await client.job(job.backup_id[:-3])).job_id == job.backup_id
    watched = [
        each
        async for each in client.peer.stream(
            client.jobs.WatchJob, job_pb2.WatchJobRequest(job_id=started[-1]), timeout=60
        )
    ]
    assert watched[-1].status == "completed"
    done = await refused(client.peer.call(client.jobs.RetryJob, job_pb2.RetryJobRequest(job_id=started[-1])))
    assert done.reason == "JOB_NOT_FAILED"


async def test_a_sweep_gives_back_what_was_left_and_says_so(settings: BackupSettings, world: World) -> None:
    world.add_vm("web")
    slow = settings.model_copy(update={"sweep_seconds": 600.0})  # the caretaker must not be faster
    catalogue = Catalogue(settings.catalogue_url)
    async with running(slow) as client:
        world.always["RemoveSnapshot"] = SendenseError("busy", kind=Kind.INTERNAL, reason="BUSY")
        backup = await client.run("web")
        assert (backup.status, len(world.vms[0].snapshots)) == ("completed", 1)
        del world.always["RemoveSnapshot"]
        swept, _ = await catalogue.operations.admit(NewOperation(SWEEP, "all"))
        ended = await client.ended_job(swept.operation_id)
        assert ended.status == "completed"
        assert [each for each in ended.result["given_back"] if backup.backup_id in each]
        await cleaned(world)
    await catalogue.close()


async def test_sweeps_come_by_themselves_and_old_records_go(settings: BackupSettings, world: World) -> None:
    often = settings.model_copy(update={"sweep_minutes": 0.005, "tick_seconds": 0.1, "keep_records_days": 0.0})
    world.add_vm("web")
    catalogue = Catalogue(settings.catalogue_url)
    async with running(often) as client:
        backup = await client.run("web")
        await until(lambda: "ListExports" in world.calls, "a sweep ran")
        async with asyncio.timeout(60):
            while True:
                request = job_pb2.ListJobsRequest(kind="sweep", status="completed")
                sweeps = (await client.peer.call(client.jobs.ListJobs, request)).jobs
                if any(each.result["workflows_purged"] for each in sweeps):
                    break
                await asyncio.sleep(0.1)
        assert (await client.get(backup.backup_id)).status == "completed"
        assert await client.log(backup.backup_id)
    await catalogue.close()
