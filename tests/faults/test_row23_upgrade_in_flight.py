"""Row 23: an upgrade with work in flight ends it visibly and undone; the older version lives on after a migration."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from backup_postgres import postgres
from backup_process import kill, service_process
from backup_service import cleaned, make_catalogue, settings_for, until
from past_backups import past_backups
from sqlalchemy import Engine, Inspector, create_engine, inspect, make_url
from world_serving import world_serving

from sendense.backup.v1 import job_pb2
from sendense_backup.store import Catalogue
from sendense_db.migrate import migrations_folder, upgrade

REVISIONS = sorted(path.name[:4] for path in (migrations_folder() / "versions").glob("[0-9]*.py"))
DESTROYED_ON_PURPOSE: dict[str, set[str]] = {}
"""Columns that a revision may take away, by revision, each with the reason in its text."""


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_jobs_that_an_older_version_began_end_as_upgraded_with_all_undone(memory_home: Path) -> None:
    settings = settings_for(memory_home)
    await make_catalogue(settings)
    catalogue = Catalogue(settings.catalogue_url)
    async with world_serving(settings) as world:
        vm = world.add_vm("web")
        await past_backups(catalogue, world, vm, 2)
        (kept,) = await past_backups(catalogue, world, world.add_vm("other"), 1)
        contents = {each.backup_id: world.point_contents(each.backup_id) for each in world.points}
        plan = {"web": ("capture.0", "executed"), "other": ("read", "executed")}
        async with service_process(settings, plan, SENDENSE_TEST_VERSION="backup-0") as (process, client):
            backup = await client.start("web", "incremental")
            request = job_pb2.VerifyBackupRequest(backup_id=kept.backup_id)
            verify = await client.peer.call(client.jobs.VerifyBackup, request)
            marks = settings.root / "marks"
            await until(lambda: len(list(marks.iterdir())) == len(plan), "both jobs hang")
            await kill(process, settings)
        async with service_process(settings) as (_, client):
            for job_id in (backup.backup_id, verify.job_id):
                ended = await client.ended_job(job_id)
                assert (ended.status, ended.error_reason) == ("failed", "UPGRADED")
                assert "backup-0" in ended.error_message
            await cleaned(world)
            assert {each.backup_id: world.point_contents(each.backup_id) for each in world.points} == contents
            again = await client.peer.call(client.jobs.RetryJob, job_pb2.RetryJobRequest(job_id=backup.backup_id))
            assert (await client.ended_job(again.job_id)).status == "completed"
    await catalogue.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        made = create_engine(f"sqlite:///{tmp_path}/catalogue.sqlite")
        yield made
        made.dispose()
        return
    with postgres() as url:
        made = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
        yield made
        made.dispose()


def test_what_an_older_version_writes_still_fits_after_each_migration(engine: Engine) -> None:
    """The older version goes on beside the migrated catalogue: its tables and columns stay, new ones need no value."""
    url = engine.url.render_as_string(hide_password=False)
    wrong: list[str] = []
    before: dict[str, dict[str, bool]] = {}
    for revision in REVISIONS:
        upgrade(url, revision)
        now = columns(inspect(engine))
        for table, old in before.items():
            gone = set(old) - set(now.get(table, {})) - DESTROYED_ON_PURPOSE.get(revision, set())
            wrong += [f"{revision}: {table}.{name} is gone" for name in gone]
            added = set(now.get(table, {})) - set(old)
            wrong += [f"{revision}: {table}.{name} needs a value" for name in added if now[table][name]]
            tightened = [name for name in set(old) & set(now.get(table, {})) if now[table][name] and not old[name]]
            wrong += [f"{revision}: {table}.{name} needs a value now" for name in tightened]
        before = now
    assert wrong == []


def columns(inspector: Inspector) -> dict[str, dict[str, bool]]:
    """Returns for each table its columns, and whether an insert must name them."""
    return {
        table: {
            each["name"]: not each["nullable"] and each["default"] is None and each.get("autoincrement") is not True
            for each in inspector.get_columns(table)
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


async def test_a_migration_that_would_wait_for_a_lock_fails_instead_of_holding_up_the_service() -> None:
    with postgres() as url:
        await asyncio.to_thread(upgrade, url, REVISIONS[0])
        plain = url.replace("postgresql+asyncpg", "postgresql")
        with psycopg.connect(plain) as busy:
            busy.execute("SELECT count(*) FROM backup_jobs")  # its transaction stays open, as a running service's may
            with pytest.raises(Exception, match="lock timeout"):
                await asyncio.to_thread(upgrade, url)
            busy.rollback()
        await asyncio.to_thread(upgrade, url)
