"""What the catalogue promises, on SQLite: one job per VM, fencing by attempt, leases that are never forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sendense_backup.errors import AmbiguousBackupId, BackupNotFound, BackupRunning, JobNotFound, Superseded
from sendense_backup.model import Disk, Repository, VmRef
from sendense_backup.store import Catalogue, metadata
from sendense_backup.store.admission import NewJob
from sendense_backup.store.jobs import JobFilter
from sendense_backup.store.leases import KEPT, LAYER, SNAPSHOT

REPOSITORY = Repository("repo-1", "local", "local", "/backups", enabled=True, available_size_bytes=1)
MOMENT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def new_job(number: int = 1, **more: object) -> NewJob:
    values: dict[str, object] = {
        "vm_name": f"vm{number}",
        "ref": VmRef("vc", f"{number:036}"),
        "agent_id": "agent-1",
        "requested_type": "full",
        "repository": REPOSITORY,
        "quiesce": False,
        **more,
    }
    return NewJob(**values)  # type: ignore[arg-type]


@pytest.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    made = Catalogue(f"sqlite+aiosqlite:///{tmp_path}/catalogue.sqlite")
    async with made.database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield made
    await made.close()


async def test_one_of_many_starts_at_once_wins_and_the_others_name_it(catalogue: Catalogue) -> None:
    results = await asyncio.gather(*(catalogue.admission.admit(new_job()) for _ in range(8)), return_exceptions=True)
    won = [each for each in results if not isinstance(each, BaseException)]
    assert len(won) == 1
    lost = [each for each in results if isinstance(each, BackupRunning)]
    assert len(lost) == 7
    assert {each.metadata["backup_id"] for each in lost} == {won[0][0].backup_id}


async def test_a_vm_keeps_its_context_through_renaming(catalogue: Catalogue) -> None:
    first, _ = await catalogue.admission.admit(new_job())
    await catalogue.running.end(first.backup_id, 0, "failed")
    second, _ = await catalogue.admission.admit(new_job(vm_name="renamed"))
    assert second.vm_context_id == first.vm_context_id
    assert [each.context_id for each in await catalogue.contexts.named("renamed")] == [first.vm_context_id]
    assert await catalogue.contexts.named("vm1") == []


async def test_ids_of_one_second_differ(catalogue: Catalogue) -> None:
    ids = []
    for number in range(4):
        job, _ = await catalogue.admission.admit(new_job(number, vm_name="same"), MOMENT)
        ids.append(job.backup_id)
    base = "backup-same-20260301120000"
    assert ids == [base, f"{base}-2", f"{base}-3", f"{base}-4"]
    assert (await catalogue.jobs.get(base)).backup_id == base
    with pytest.raises(AmbiguousBackupId):
        await catalogue.jobs.get(base[:-1])
    with pytest.raises(BackupNotFound):
        await catalogue.jobs.get("backup-s_me")


async def test_a_deleted_backup_is_not_another_one_whose_id_begins_alike(catalogue: Catalogue) -> None:
    ids = []
    for _ in range(2):
        job, _ = await catalogue.admission.admit(new_job(), MOMENT)
        await catalogue.running.end(job.backup_id, 0, "completed")
        ids.append(job.backup_id)
    assert ids[1].startswith(ids[0])
    await catalogue.jobs.mark_deleted(ids[:1])
    with pytest.raises(BackupNotFound):
        await catalogue.jobs.get(ids[0])
    with pytest.raises(JobNotFound):
        await catalogue.all_jobs.resolve(ids[0])
    assert (await catalogue.jobs.get(ids[0][:-1])).backup_id == await catalogue.all_jobs.resolve(ids[0][:-1]) == ids[1]


async def test_an_execution_that_was_taken_over_changes_nothing(catalogue: Catalogue) -> None:
    job, _ = await catalogue.admission.admit(new_job())
    old = await catalogue.running.claim(job.backup_id)
    newer = await catalogue.running.claim(job.backup_id)
    assert (old, newer) == (1, 2)
    before = await catalogue.running.read(job.backup_id)
    for write in (
        catalogue.running.start(job.backup_id, 1),
        catalogue.running.end(job.backup_id, 1, "failed"),
        catalogue.running.update_job(job.backup_id, 1, phase="x"),
        catalogue.running.put_disks(job.backup_id, 1, [(Disk(1, "i", "l", 1), "pending")]),
        catalogue.running.claim(job.backup_id, expected=1),
    ):
        with pytest.raises(Superseded):
            await write
    assert await catalogue.running.read(job.backup_id) == before


async def test_a_job_that_ended_cannot_be_claimed_or_cancelled(catalogue: Catalogue) -> None:
    job, _ = await catalogue.admission.admit(new_job())
    assert await catalogue.jobs.request_cancel(job.backup_id)
    await catalogue.running.end(job.backup_id, 0, "cancelled")
    assert await catalogue.running.claim(job.backup_id) is None
    with pytest.raises(Superseded):
        await catalogue.running.end(job.backup_id, 0, "completed")
    assert (await catalogue.jobs.get(job.backup_id)).status == "cancelled"
    assert not await catalogue.jobs.request_cancel(job.backup_id)
    assert (await catalogue.jobs.active()) == []


async def test_progress_adds_disks_up_and_tells_a_wish_to_cancel(catalogue: Catalogue) -> None:
    job, _ = await catalogue.admission.admit(new_job())
    found = [(Disk(2000 + n, f"id{n}", f"Hard disk {n}", 100), "pending") for n in range(2)]
    await catalogue.running.put_disks(job.backup_id, 0, found)
    for position in range(2):
        await catalogue.running.update_disk(job.backup_id, 0, position, total_bytes=50)
    assert not await catalogue.running.progress(job.backup_id, 0, 0, 20, 7)
    await catalogue.jobs.request_cancel(job.backup_id)
    assert await catalogue.running.progress(job.backup_id, 0, 1, 5, 7)
    now = await catalogue.running.read(job.backup_id)
    assert (now.bytes_transferred, now.total_bytes, now.rate_bytes_per_second) == (25, 100, 7)


async def test_leases_are_undone_backwards_and_seen_until_they_end(catalogue: Catalogue) -> None:
    job, _ = await catalogue.admission.admit(new_job())
    snapshot = await catalogue.leases.take(job.backup_id, SNAPSHOT, "vm", 1)
    layer = await catalogue.leases.take(job.backup_id, LAYER, "0", 1)
    assert await catalogue.leases.take(job.backup_id, LAYER, "0", 2) == layer
    await catalogue.leases.acquired(layer, "layer-1")
    assert [each.kind for each in await catalogue.leases.held(job.backup_id)] == [LAYER, SNAPSHOT]
    assert await catalogue.leases.left_behind() == []
    await catalogue.running.end(job.backup_id, 0, "failed")
    assert await catalogue.leases.left_behind() == [job.backup_id]
    assert await catalogue.leases.left_behind("another") == []
    await catalogue.leases.end(layer, KEPT)
    await catalogue.leases.end(snapshot)
    assert await catalogue.leases.left_behind() == []
    assert await catalogue.leases.used(LAYER, "0")


async def test_pages_neither_repeat_nor_miss_a_job_made_meanwhile(catalogue: Catalogue) -> None:
    made = []
    for number in range(7):
        job, _ = await catalogue.admission.admit(new_job(number), MOMENT + timedelta(seconds=number // 3))
        made.append(job.backup_id)
    seen, token = [], ""
    while True:
        page, token = await catalogue.jobs.page(JobFilter(), 2, token)
        seen += [each.backup_id for each in page]
        if len(seen) == 2:
            await catalogue.admission.admit(new_job(99), MOMENT + timedelta(seconds=60))
        if not token:
            break
    assert sorted(seen) == sorted(made)
    assert len(seen) == 7
    window = JobFilter(created_after=MOMENT + timedelta(seconds=1), created_before=MOMENT + timedelta(seconds=2))
    assert len((await catalogue.jobs.page(window, 100, ""))[0]) == 3


async def test_the_installation_keeps_one_id(catalogue: Catalogue) -> None:
    ids = await asyncio.gather(*(catalogue.installation_id() for _ in range(5)))
    assert len(set(ids)) == 1
