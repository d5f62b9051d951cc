"""Engine and transactions, the same on SQLite (embedded default) and PostgreSQL.

SQLite needs this module to own BEGIN: four processes doing read-modify-write in deferred transactions lost half of the
updates without an error, in WAL mode too; BEGIN IMMEDIATE did not (platform-facts). So a unit of work that writes is
`begin()`, one that only reads is `read()`, and no RPC is made inside either.

Writers of one process wait in line. With SQLite, writers that meet at the lock sleep in its busy handler, up to 100 ms
a time, in no order: of 28 jobs at once some starved. In line, each goes on the moment the one before ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, event, make_url
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InvalidatePoolError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

BUSY_TIMEOUT_MS = 30_000

RECONNECT_SECONDS = 0.3
"""Pause between two tries to reach a server that is away."""

IDLE_SECONDS = 1.0
"""A connection that lay unused for longer is asked whether it lives before it is used; asking is three round trips."""

_USED_AT = "sendense_used_at"

outlast: ContextVar[float] = ContextVar("sendense_outlast", default=0.0)
"""Seconds for which work waits for a server that is away. Callers of an API wait for nothing, workflows for long."""


def new_metadata() -> MetaData:
    """Returns metadata with the naming convention that migrations rely on."""
    return MetaData(naming_convention=NAMING)


class Database:
    """One process's connections to the catalogue.

    Args:
        url: SQLAlchemy URL with an async driver (`sqlite+aiosqlite://…`, `postgresql+asyncpg://…`).
    """

    def __init__(self, url: str) -> None:
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        self._line = asyncio.Lock()
        database = make_url(url).database
        if self._sqlite and database:
            Path(database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.engine: AsyncEngine = create_async_engine(url)
        self._reading = self.engine
        if self._sqlite:
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite)
        else:
            # The same connections; what they begin is told to the server with BEGIN.
            self._reading = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            event.listen(self.engine.sync_engine, "checkin", _note_use)
            event.listen(self.engine.sync_engine, "checkout", self._refuse_dead)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A unit of work that writes: committed at the end, rolled back on an error."""
        async with AsyncExitStack() as stack:
            if self._sqlite:
                await stack.enter_async_context(self._line)
            connection = await self._connected(stack, self.engine)
            if self._sqlite:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                await connection.rollback()
                raise
            await connection.commit()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A unit of work that only reads, on one consistent view."""
        async with AsyncExitStack() as stack:
            connection = await self._connected(stack, self._reading)
            if self._sqlite:
                await connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                await connection.rollback()

    async def _connected(self, stack: AsyncExitStack, engine: AsyncEngine) -> AsyncConnection:
        """Returns a connection; within `outlast` a server that is away is waited for."""
        deadline = time.monotonic() + outlast.get()
        while True:
            try:
                connection = await engine.connect()
            except Exception as error:
                if not self.is_outage(error) or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RECONNECT_SECONDS)
            else:
                stack.push_async_callback(connection.close)
                return connection

    def _refuse_dead(self, connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        """Lets the pool replace a connection, and all that are as old, whose server went away while it lay unused."""
        used_at = record.info.get(_USED_AT)
        if used_at is None or time.monotonic() - used_at < IDLE_SECONDS:
            return
        dialect = self.engine.dialect
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    def is_outage(self, error: BaseException) -> bool:
        """Tells whether a unit of work failed because the server went away: it may or may not have been committed."""
        if self._sqlite:
            return False
        if isinstance(error, (IntegrityError, DataError, ProgrammingError, NotSupportedError)):
            return False
        return isinstance(error, (DBAPIError, OSError))

    async def check(self) -> None:
        """Raises OSError when the database does not answer."""
        try:
            async with self.read() as connection:
                await connection.exec_driver_sql("SELECT 1")
        except Exception as error:
            raise OSError(f"the catalogue does not answer: {type(error).__name__}") from error

    async def close(self) -> None:
        """Closes all connections."""
        await self.engine.dispose()


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = time.monotonic()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # `begin` and `read` emit BEGIN themselves; the driver must not.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
