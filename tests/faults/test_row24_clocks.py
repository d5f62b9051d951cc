"""Row 24: a clock a day off, daylight saving and two backups in one second: ids unique, order kept, nothing early.

Daylight saving in schedules is in tests/unit/backup/test_backup_policy.py, a clock set back under policies in
tests/integration/backup/test_backup_policies.py, expiry of locks with the repository's tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sendense_backup.model import SWEEP, Repository, VmRef
from sendense_backup.store import Catalogue, metadata
from sendense_backup.store.admission import NewJob
from sendense_backup.store.all_jobs import AnyFilter
from sendense_backup.store.jobs import JobFilter
from sendense_backup.store.operations import NewOperation

NOON = datetime(2026, 3, 29, 12, 0, 0, tzinfo=UTC)
EVERY = timedelta(minutes=15)


@pytest.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    made = Catalogue(f"sqlite+aiosqlite:///{tmp_path}/catalogue.sqlite")
    async with made.database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield made
    await made.close()


def new_job(number: int) -> NewJob:
    repository = Repository("repo-1", "local", "local", "/b", enabled=True, available_size_bytes=1)
    return NewJob("same", VmRef("vc", f"{number:036}"), "agent-1", "full", repository, quiesce=False)


async def test_jobs_of_one_second_have_ids_of_their_own_whatever_kind(catalogue: Catalogue) -> None:
    made = await asyncio.gather(*(catalogue.admission.admit(new_job(number), NOON) for number in range(30)))
    operations = [await catalogue.operations.admit(NewOperation(SWEEP, "same"), NOON) for _ in range(5)]
    ids = [job.backup_id for job, _ in made] + [each.operation_id for each, _ in operations]
    assert len(set(ids)) == len(ids)
    assert all(len(each) <= 64 for each in ids)


async def test_pages_lose_and_repeat_nothing_though_all_is_of_one_second(catalogue: Catalogue) -> None:
    for number in range(25):
        await catalogue.admission.admit(new_job(number), NOON)
    seen: list[str] = []
    token = ""
    while True:
        page, token = await catalogue.jobs.page(JobFilter(), 4, token)
        seen += [each.backup_id for each in page]
        if not token:
            break
    assert len(seen) == len(set(seen)) == 25
    anything, _ = await catalogue.all_jobs.page(AnyFilter(), 100, "")
    assert len(anything) == 25


async def test_a_clock_that_jumps_a_day_forward_and_back_starts_one_sweep_each_time(catalogue: Catalogue) -> None:
    schedules = catalogue.schedules
    assert await schedules.due(SWEEP, NOON, EVERY) is None
    tomorrow = NOON + timedelta(days=1)
    due = await schedules.due(SWEEP, tomorrow, EVERY)
    assert due == NOON + EVERY
    await schedules.done(SWEEP, due, tomorrow, EVERY)
    assert await schedules.due(SWEEP, tomorrow, EVERY) is None
    back = NOON + timedelta(minutes=1)
    due = await schedules.due(SWEEP, back, EVERY)
    assert due == tomorrow + EVERY, "a clock that was set back must not put sweeps off for a day"
    await schedules.done(SWEEP, due, back, EVERY)
    assert await schedules.due(SWEEP, back, EVERY) is None


async def test_a_running_job_survives_a_clock_set_back(catalogue: Catalogue) -> None:
    job, _ = await catalogue.admission.admit(new_job(1), NOON + timedelta(days=1))
    attempt = await catalogue.running.claim(job.backup_id)
    assert attempt == 1
    await catalogue.running.start(job.backup_id, attempt)
    await catalogue.running.end(job.backup_id, attempt, "completed")
    later, _ = await catalogue.admission.admit(new_job(1), NOON)
    assert later.backup_id != job.backup_id
