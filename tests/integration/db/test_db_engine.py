"""Units of work on SQLite: what is lost without BEGIN IMMEDIATE is not lost here."""

from __future__ import annotations

import asyncio
import multiprocessing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, Table, insert, select, update
from sqlalchemy.exc import StatementError

from sendense_db.columns import UtcDateTime
from sendense_db.engine import Database, new_metadata

METADATA = new_metadata()
COUNTERS = Table("counters", METADATA, Column("id", Integer, primary_key=True), Column("value", Integer))
MOMENTS = Table("moments", METADATA, Column("id", Integer, primary_key=True), Column("at", UtcDateTime))

PROCESSES, ROUNDS = 4, 25


def _count(url: str) -> None:
    async def main() -> None:
        database = Database(url)
        for _ in range(ROUNDS):
            async with database.begin() as connection:
                value = (await connection.execute(select(COUNTERS.c.value))).scalar_one()
                await connection.execute(update(COUNTERS).values(value=value + 1))
        await database.close()

    asyncio.run(main())


async def _database(tmp_path: Path) -> Database:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'db' / 'test.sqlite'}")
    async with database.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    return database


async def test_no_update_is_lost_between_processes(tmp_path: Path) -> None:
    database = await _database(tmp_path)
    async with database.begin() as connection:
        await connection.execute(insert(COUNTERS).values(id=1, value=0))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(str(database.engine.url),)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    async with database.read() as connection:
        assert (await connection.execute(select(COUNTERS.c.value))).scalar_one() == PROCESSES * ROUNDS
    await database.close()


async def test_a_failed_unit_changes_nothing(tmp_path: Path) -> None:
    database = await _database(tmp_path)
    with pytest.raises(RuntimeError):  # noqa: PT012  # the failure comes from inside the unit
        async with database.begin() as connection:
            await connection.execute(insert(COUNTERS).values(id=1, value=0))
            raise RuntimeError("half-way")
    async with database.read() as connection:
        assert (await connection.execute(select(COUNTERS))).all() == []
    await database.close()


async def test_moments_come_back_as_utc_and_need_a_zone(tmp_path: Path) -> None:
    database = await _database(tmp_path)
    noon = datetime(2026, 3, 29, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    async with database.begin() as connection:
        await connection.execute(insert(MOMENTS).values(id=1, at=noon))
    async with database.read() as connection:
        stored = (await connection.execute(select(MOMENTS.c.at))).scalar_one()
    assert stored == noon
    assert stored.tzinfo is UTC
    with pytest.raises(StatementError, match="zone"):
        async with database.begin() as connection:
            await connection.execute(insert(MOMENTS).values(id=2, at=datetime(2026, 1, 1)))  # noqa: DTZ001
    await database.close()


async def test_the_health_check_looks(tmp_path: Path) -> None:
    database = await _database(tmp_path)
    await database.check()
    await database.close()
    broken = Database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    with pytest.raises(OSError, match="catalogue"):
        await broken.check()
    await broken.close()


async def test_a_unit_that_is_cancelled_at_any_moment_holds_no_lock(tmp_path: Path) -> None:
    database, other = await _database(tmp_path), Database(f"sqlite+aiosqlite:///{tmp_path / 'db' / 'test.sqlite'}")

    async def write(number: int) -> None:
        async with database.begin() as connection:
            for step in range(5):
                await connection.execute(insert(COUNTERS).values(id=number * 10 + step, value=0))

    for turns in range(60):
        task = asyncio.create_task(write(turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(60), other.begin() as connection:  # far sooner than SQLite's busy time-out, twice
            count = len((await connection.execute(select(COUNTERS))).all())
            assert count % 5 == 0, "a cancelled unit was committed in part"
    await database.close()
    await other.close()
