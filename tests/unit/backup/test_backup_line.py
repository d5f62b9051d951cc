"""The line: never more than the limits, by priority and age, not outside a window, and not for the cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sendense_backup.model import DELETE, SWEEP, Repository, VmRef
from sendense_backup.policy import PolicyRules, Selector, Window, opens_at
from sendense_backup.store import Catalogue, metadata
from sendense_backup.store.admission import NewJob
from sendense_backup.store.line import Limits
from sendense_backup.store.operations import NewOperation

NOON = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    made = Catalogue(f"sqlite+aiosqlite:///{tmp_path}/catalogue.sqlite")
    async with made.database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await made.installation_id()
    yield made
    await made.close()


async def wait_in_line(catalogue: Catalogue, number: int, **more: object) -> str:
    values: dict[str, object] = {
        "vm_name": f"vm{number}",
        "ref": VmRef("vc", f"{number:036}"),
        "agent_id": "agent-1",
        "requested_type": "full",
        "repository": Repository("repo-1", "local", "local", "/b", enabled=True, available_size_bytes=1),
        "quiesce": False,
        **more,
    }
    job, _ = await catalogue.admission.admit(NewJob(**values), NOON + timedelta(seconds=number))  # type: ignore[arg-type]
    return job.backup_id


async def let_in(catalogue: Catalogue, limits: Limits, moment: datetime = NOON + timedelta(hours=1)) -> list[str]:
    return [each.job_id for each in await catalogue.line.let_in(limits, moment, opens_at)]


async def test_the_total_counts_what_runs_and_who_is_first_goes_first(catalogue: Catalogue) -> None:
    ids = [await wait_in_line(catalogue, number) for number in range(4)]
    urgent = await wait_in_line(catalogue, 9, priority=5)
    assert await let_in(catalogue, Limits(3)) == [urgent, *ids[:2]]
    assert await let_in(catalogue, Limits(3)) == []
    await catalogue.running.end(urgent, 0, "completed")
    assert await let_in(catalogue, Limits(3)) == [ids[2]]


async def test_each_limit_holds_by_itself(catalogue: Catalogue) -> None:
    other = Repository("repo-2", "other", "local", "/o", enabled=True, available_size_bytes=1)
    a = await wait_in_line(catalogue, 1, datastores=("ds1",))
    b = await wait_in_line(catalogue, 2, datastores=("ds1", "ds2"))
    c = await wait_in_line(catalogue, 3, agent_id="agent-2", datastores=("ds3",))
    d = await wait_in_line(catalogue, 4, agent_id="agent-2", repository=other)
    assert await let_in(catalogue, Limits(9, per_datastore=1)) == [a, c, d]
    assert await let_in(catalogue, Limits(9, per_datastore=1)) == []
    for each in (a, c, d):
        await catalogue.running.end(each, 0, "failed")
    assert await let_in(catalogue, Limits(9, per_datastore=1)) == [b]
    e = await wait_in_line(catalogue, 5)
    f = await wait_in_line(catalogue, 6, agent_id="agent-2")
    assert await let_in(catalogue, Limits(9, per_agent=1)) == [f]
    assert await let_in(catalogue, Limits(9, per_repository=2)) == []
    assert await let_in(catalogue, Limits(9, per_repository=3)) == [e]


async def test_many_doorkeepers_at_once_let_in_no_more_than_one_would(catalogue: Catalogue) -> None:
    for number in range(20):
        await wait_in_line(catalogue, number)
    others = [Catalogue(str(catalogue.database.engine.url)) for _ in range(3)]
    found = await asyncio.gather(*(let_in(each, Limits(5)) for each in (catalogue, *others) for _ in range(3)))
    for each in others:
        await each.close()
    together = [job for one in found for job in one]
    assert len(together) == len(set(together)) == 5


async def test_the_cancelled_and_sweeps_take_no_place(catalogue: Catalogue) -> None:
    first, second = [await wait_in_line(catalogue, number) for number in range(2)]
    assert await let_in(catalogue, Limits(1)) == [first]
    await catalogue.jobs.request_cancel(second)
    sweep, _ = await catalogue.operations.admit(NewOperation(SWEEP, "all"), NOON)
    waits, _ = await catalogue.operations.admit(NewOperation(DELETE, "x", repository_id="repo-1"), NOON)
    assert sorted(await let_in(catalogue, Limits(1))) == sorted([second, sweep.operation_id])
    assert (await catalogue.operations.read(waits.operation_id)).admitted_at is None


async def test_a_job_waits_for_its_time_and_for_its_policys_window(catalogue: Catalogue) -> None:
    rules = PolicyRules(include=(Selector(pattern="*"),), window=Window("22:00", "06:00"))
    policy = await catalogue.policies.create("night", "0 1 * * *", rules, enabled=True, moment=NOON)
    late = await wait_in_line(catalogue, 1, not_before=NOON + timedelta(hours=2))
    night = await wait_in_line(catalogue, 2, policy_id=policy.policy_id)
    assert await let_in(catalogue, Limits(9)) == []
    assert (await catalogue.running.read(night)).not_before == NOON.replace(hour=22)
    assert await let_in(catalogue, Limits(9), NOON + timedelta(hours=3)) == [late]
    assert await let_in(catalogue, Limits(9), NOON.replace(hour=22, minute=1)) == [night]
