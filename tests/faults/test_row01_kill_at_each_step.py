"""Row 1: kill -9 right after each step of each workflow; started again, the job ends as it must, every byte right.

The steps are asked of the registry of workflows, so a new step or workflow is covered without anybody remembering. All
jobs run at once, each hangs at its own step, and then the process is killed under all of them. A kill before a step is
recorded makes it run twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from backup_postgres import postgres
from backup_process import kill, service_process
from backup_service import cleaned, make_catalogue, settings_for, until
from backup_world import World
from scenarios import SCENARIOS, Case, prepared, wrongs
from world_serving import world_serving

from sendense_backup.config import BackupSettings
from sendense_backup.store import Catalogue
from sendense_backup.workflows.registry import WORKFLOWS
from sendense_db.migrate import upgrade

UNRECORDED = "release"
"""Its steps are done again from the lease rows: DBOS records none of them."""


def moments() -> list[tuple[str, str, str]]:
    """Every moment of every workflow: (workflow, step, before or after it is recorded)."""
    found = []
    for workflow in WORKFLOWS.values():
        for step in workflow.steps:
            name = f"{step.name}.0" if step.per_disk else step.name
            found.append((workflow.name, name, "executed"))
            if workflow.name != UNRECORDED:
                found.append((workflow.name, name, "recorded"))
    return found


def test_every_workflow_has_a_scenario() -> None:
    assert set(SCENARIOS) == set(WORKFLOWS)


@pytest.fixture(params=["sqlite", "postgresql"])
async def settings(request: pytest.FixtureRequest, memory_home: Path) -> AsyncIterator[BackupSettings]:
    if request.param == "sqlite":
        made = settings_for(memory_home)
        await make_catalogue(made)
        yield made
        return
    with postgres() as url:
        await asyncio.to_thread(upgrade, url)
        yield settings_for(memory_home, SENDENSE_DATABASE_URL=url)


@pytest.mark.faults
@pytest.mark.timeout(600)  # some sixty jobs at once, and all of them again
async def test_sigkill_right_after_each_step(settings: BackupSettings) -> None:
    plan = {f"vm{number}": moment for number, moment in enumerate(moments())}
    catalogue = Catalogue(settings.catalogue_url)
    async with world_serving(settings) as world:
        cases = {name: await prepared(name, workflow, catalogue, world) for name, (workflow, _, _) in plan.items()}
        hang = {name: (step, moment) for name, (_, step, moment) in plan.items()}
        async with service_process(settings, hang) as (process, client):
            for name, case in cases.items():
                case.job_id = await SCENARIOS[plan[name][0]].start(client, catalogue, world, case)
            await _all_hang(settings.root / "marks", plan)
            await kill(process, settings)
        async with service_process(settings) as (_, client):
            ended = {name: await client.ended_job(case.job_id) for name, case in cases.items()}
            await cleaned(world)
    await catalogue.close()
    assert _report(plan, cases, world, {name: job.status for name, job in ended.items()}) == []


async def _all_hang(marks: Path, plan: dict[str, tuple[str, str, str]]) -> None:
    try:
        await until(lambda: len(list(marks.iterdir())) == len(plan), "every job hangs at its step")
    except AssertionError as error:
        hanging = {each.name for each in marks.iterdir()}  # noqa: ASYNC240  # the test ends here
        error.add_note(f"these do not: {[moment for name, moment in plan.items() if name not in hanging]}")
        raise


def _report(
    plan: dict[str, tuple[str, str, str]], cases: dict[str, Case], world: World, statuses: dict[str, str]
) -> list[str]:
    return [
        f"{' '.join(plan[name])}: {wrong}"
        for name, case in cases.items()
        for wrong in wrongs(plan[name][0], case, world, statuses[name])
    ]
