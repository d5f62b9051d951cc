"""The migrations make exactly the tables that the services' stores describe, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from backup_postgres import postgres
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import IntegrityError

from sendense_db.engine import Database
from sendense_db.migrate import MigrationsNotFound, alembic_config, upgrade


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{short_tmp}/db/sendense.sqlite"
    else:
        with postgres() as served:
            yield served


async def test_migrations_and_stores_describe_the_same_tables(url: str) -> None:
    await asyncio.to_thread(upgrade, url)
    await asyncio.to_thread(upgrade, url)
    # Raises when autogenerate finds a difference.
    await asyncio.to_thread(command.check, alembic_config(url))
    database = Database(url)
    try:
        with pytest.raises(IntegrityError):
            async with database.begin() as connection:
                await connection.execute(
                    text(
                        "INSERT INTO backup_chains (id, vm_context_id, disk_id, full_backup_id, latest_backup_id,"
                        " total_backups, total_size_bytes, created_at, updated_at)"
                        " VALUES ('c', 'nobody', 0, 'none', 'none', 1, 1, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
                    )
                )
    finally:
        await database.close()


def test_a_downgrade_takes_everything_away(short_tmp: Path) -> None:
    url = f"sqlite:///{short_tmp}/catalogue.sqlite"
    upgrade(url)
    command.downgrade(alembic_config(url), "base")
    engine = create_engine(make_url(url))
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


async def test_processes_that_migrate_at_once_wait_for_each_other(url: str) -> None:
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sendense_db.migrate", url, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in started:
        _, complaint = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, complaint.decode()[-2000:]
    await asyncio.to_thread(command.check, alembic_config(url))


def test_missing_migrations_are_named(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_MIGRATIONS", str(short_tmp))
    with pytest.raises(MigrationsNotFound, match=str(short_tmp)):
        upgrade(f"sqlite:///{short_tmp}/catalogue.sqlite")
