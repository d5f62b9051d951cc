"""Units of work on PostgreSQL: reads see one moment, and connections that died unused are replaced."""

from __future__ import annotations

import asyncio

import psycopg
from backup_postgres import postgres
from sqlalchemy import text

from sendense_db import engine
from sendense_db.engine import Database


async def test_reads_are_one_view_and_dead_connections_are_not_given_out() -> None:
    with postgres() as url:
        database = Database(url)
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE seen (value int)"))
        async with database.read() as reading:
            assert (await reading.execute(text("SELECT count(*) FROM seen"))).scalar_one() == 0
            async with database.begin() as writing:
                await writing.execute(text("INSERT INTO seen VALUES (1)"))
            assert (await reading.execute(text("SELECT count(*) FROM seen"))).scalar_one() == 0
        await asyncio.to_thread(_end_connections, url)
        await asyncio.sleep(engine.IDLE_SECONDS * 1.5)
        for _ in range(3):
            async with database.begin() as writing:
                await writing.execute(text("INSERT INTO seen VALUES (2)"))
            async with database.read() as reading:
                assert (await reading.execute(text("SELECT count(*) FROM seen"))).scalar_one() > 1
        await database.close()


def _end_connections(url: str) -> None:
    with psycopg.connect(url.replace("+asyncpg", ""), autocommit=True, connect_timeout=30) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
