"""Ticks of the scheduler on the catalogue alone: large policies are queued in parts, retries keep what jobs ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import update

from sendense_backup import scheduler as scheduling
from sendense_backup.config import BackupSettings
from sendense_backup.jobs import Jobs
from sendense_backup.model import FAILED, KnownVm, Repository, RetentionRules, Vm, VmRef
from sendense_backup.policy import PolicyRules, Selector
from sendense_backup.scheduler import Scheduler
from sendense_backup.store import Catalogue
from sendense_backup.store.admission import NewJob
from sendense_backup.store.all_jobs import AnyFilter
from sendense_backup.store.jobs import JobFilter
from sendense_backup.store.tables import jobs
from sendense_backup.workflows.runtime import Runtime

pytest_plugins = ("backup_fixtures",)

NOON = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
REPOSITORY = Repository("repo-1", "local", "local", "/backups", enabled=True, available_size_bytes=1)


@dataclass
class Others:
    """Stands in for the agents and the repository."""

    vms: list[KnownVm] = field(default_factory=list)
    listed: int = 0

    async def find_vms(self, name: str = "") -> list[KnownVm]:
        del name
        self.listed += 1
        return self.vms

    async def repository(self, name: str) -> Repository:
        del name
        return REPOSITORY


@pytest.fixture
async def catalogue(settings: BackupSettings) -> AsyncIterator[Catalogue]:
    made = Catalogue(settings.catalogue_url)
    yield made
    await made.close()


@pytest.fixture
def others() -> Others:
    vms = [Vm(VmRef("vc", f"00000000-0000-0000-0000-{number:012}"), f"web-{number}", "/", "on") for number in range(5)]
    return Others([KnownVm("agent-1", each) for each in vms])


@pytest.fixture
def runtime(settings: BackupSettings, catalogue: Catalogue, others: Any) -> Runtime:
    return Runtime(catalogue, others, others, others, others, settings)


async def _run(catalogue: Catalogue, rules: PolicyRules) -> str:
    policy = await catalogue.policies.create("nightly", "0 1 * * *", rules, enabled=True, moment=NOON)
    return (await catalogue.policies.run_now(policy.policy_id, NOON)).run_id


async def _end(catalogue: Catalogue, status: str) -> None:
    async with catalogue.database.begin() as connection:
        await connection.execute(update(jobs).values(status=status, completed_at=NOON))


async def test_a_tick_queues_a_part_of_a_large_policy_and_the_next_goes_on(
    runtime: Runtime, catalogue: Catalogue, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "WORK_SECONDS", -1)  # each tick starts one thing
    run_id = await _run(catalogue, PolicyRules(include=(Selector(pattern="*"),)))
    ticking = Scheduler(runtime, lambda: NOON)
    for queued in range(1, 6):
        await ticking.tick()
        assert sum(len(its) for its in (await catalogue.jobs.tries_of([run_id]))[run_id].values()) == queued
        assert runtime.tick.is_set(), "the next tick comes at once"
    await ticking.tick()
    ((run, _),) = await catalogue.policies.unfinished_runs()
    assert (run.status, run.vms_found, others.listed) == ("running", 5, 1)
    # A process that died in the middle asks for the VMs again, and queues none twice.
    await catalogue.policies.write_run(run_id, status="pending")
    await Scheduler(runtime, lambda: NOON).tick()
    assert len((await catalogue.jobs.page(JobFilter(), 100, ""))[0]) == 5


async def test_what_follows_backups_is_started_in_parts_and_once_for_each_vm(
    runtime: Runtime, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _run(catalogue, PolicyRules(include=(Selector(pattern="*"),), retention=RetentionRules(keep_last=1)))
    ticking = Scheduler(runtime, lambda: NOON)
    await ticking.tick()
    await _end(catalogue, "completed")
    await ticking.tick()
    monkeypatch.setattr(scheduling, "WORK_SECONDS", -1)
    for _ in range(10):
        await ticking.tick()
    found, _ = await catalogue.all_jobs.page(AnyFilter(kind="retention"), 100, "")
    assert sorted(each.vm_name for each in found) == [f"web-{number}" for number in range(5)]
    ((run, _),) = await catalogue.policies.unfinished_runs()
    assert (run.status, run.summary["completed"]) == ("running", 5)


async def test_retries_of_policies_and_people_count_for_the_same_datastores(
    runtime: Runtime, catalogue: Catalogue, others: Others
) -> None:
    run_id = await _run(catalogue, PolicyRules(include=(Selector(name="web-0"),), retries=1))
    await catalogue.policies.write_run(run_id, status="running")
    first = NewJob(
        vm_name="web-0",
        ref=others.vms[0].vm.ref,
        agent_id="agent-1",
        requested_type="full",
        repository=REPOSITORY,
        quiesce=False,
        datastores=("fast", "slow"),
        policy_run_id=run_id,
        exclude_disks=("2001",),
    )
    await catalogue.admission.admit(first, NOON)
    await _end(catalogue, FAILED)
    await Scheduler(runtime, lambda: NOON).tick()
    newest, failed = (await catalogue.jobs.page(JobFilter(), 100, ""))[0]
    assert (newest.retry_of, newest.datastores) == (failed.backup_id, ("fast", "slow"))
    await _end(catalogue, FAILED)
    again = await Jobs(runtime).retry(failed.backup_id, "")
    assert again.retry_of == failed.backup_id
    kept = await catalogue.running.read(again.backup_id)  # type: ignore[union-attr]
    assert (kept.datastores, kept.exclude_disks) == (("fast", "slow"), ("2001",))
