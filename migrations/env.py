"""Alembic's environment: one history for SQLite and PostgreSQL, over the tables of all services.

What always holds: one process migrates at a time (a lock on a file beside the database, or an advisory lock); on
PostgreSQL a migration that would wait for a lock, or run, for too long fails instead of holding up the services that
run; each migration is one transaction on both. A table belongs to one service: the foreign keys between services' tables
are named here, for integrity only and without any cascade.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import context
from sqlalchemy import Connection, Engine, ForeignKeyConstraint, MetaData, create_engine, event, make_url, text

import sendense_access.store
import sendense_backup.store
import sendense_exports.store
import sendense_repository.store
import sendense_restore.store
from sendense_db.engine import new_metadata

STORES = (
    sendense_backup.store,
    sendense_repository.store,
    sendense_exports.store,
    sendense_restore.store,
    sendense_access.store,
)

BETWEEN_SERVICES = (
    ("backup_chains", "vm_context_id", "vm_replication_contexts.context_id"),
    ("backup_chains", "full_backup_id", "backup_jobs.id"),
    ("backup_chains", "latest_backup_id", "backup_jobs.id"),
)
"""Foreign keys of the spec that cross services: table, column, and what it refers to."""

LOCK_WAIT_SECONDS = 120.0
"""How long a process waits for another one that migrates."""

ADVISORY_LOCK = 0x53454E44
"""Key of PostgreSQL's advisory lock: `SEND`."""


def target_metadata() -> MetaData:
    """Returns all services' tables, with the keys between them."""
    merged = new_metadata()
    for store in STORES:
        for table in store.metadata.sorted_tables:
            table.to_metadata(merged)
    for table, column, refers_to in BETWEEN_SERVICES:
        merged.tables[table].append_constraint(ForeignKeyConstraint([column], [refers_to], ondelete="RESTRICT"))
    return merged


def engine_for(url: str) -> Engine:
    """Returns an engine with a blocking driver."""
    parsed = make_url(url)
    driver = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}[parsed.get_backend_name()]
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(parsed.set(drivername=driver))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _configure_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # BEGIN is ours: the driver would leave DDL out of the transaction
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT_SECONDS * 1000)}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


@contextmanager
def alone(connection: Connection) -> Iterator[None]:
    """Keeps other processes from migrating at the same time.

    Each migration is a transaction of its own, so the database's lock alone would let another process in between two of
    them, which then does the second one again.
    """
    if connection.dialect.name == "postgresql":
        with _alone_on_postgresql(connection):
            yield
    else:
        with _alone_on_sqlite(connection.engine.url.database):
            yield


@contextmanager
def _alone_on_sqlite(database: str | None) -> Iterator[None]:
    if database is None:
        yield
        return
    with Path(f"{database}.migrating").open("w") as file:
        for _ in _until_deadline():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            break
        yield


@contextmanager
def _alone_on_postgresql(connection: Connection) -> Iterator[None]:
    for _ in _until_deadline():
        if connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}):
            break
        connection.commit()
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '300s'"))
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


def _until_deadline() -> Iterator[None]:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        yield
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process has been migrating for {LOCK_WAIT_SECONDS:g} seconds")
        time.sleep(0.1)


def run() -> None:
    """Runs the migrations that Alembic was asked for."""
    url = context.config.attributes["url"]
    engine = engine_for(url)
    try:
        with engine.connect() as connection, alone(connection):
            context.configure(
                connection=connection,
                target_metadata=target_metadata(),
                render_as_batch=context.config.attributes.get("batch", connection.dialect.name == "sqlite"),
                transaction_per_migration=connection.dialect.name == "postgresql",
                compare_type=True,
            )
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()


run()
