"""Connections to SQLite on which a statement is one trip to the connection's thread.

aiosqlite keeps SQLite in a thread of its own and goes there and back for each of: make a cursor, execute, fetch, close
it. A trip costs about as much processor time as a small statement (0.1 ms, two wake-ups), so a unit of work that reads
one row took nine trips; here it takes three: BEGIN, the statement with its rows, ROLLBACK.

What always holds: a cursor is closed in the trip that opened it, also when whoever waited for it was cancelled. All
else is aiosqlite's and SQLAlchemy's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Self

import aiosqlite


class OneTripCursor:
    """What SQLAlchemy's asyncio adapter asks of a driver's cursor; rows are fetched when the statement is executed.

    Attributes:
        description: Of the columns; None when the statement gives no rows.
        rowcount: Rows that were changed; -1 when SQLite does not say.
        lastrowid: Of the last insertion.
        arraysize: How many rows `fetchmany` gives.
    """

    def __init__(self, connection: OneTripConnection) -> None:
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1
        self._connection = connection
        self._rows: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Self:
        """Executes a statement and fetches its rows."""
        return await self._trip(lambda cursor: cursor.execute(sql, parameters))

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> Self:
        """Executes a statement once for each of the parameters."""
        return await self._trip(lambda cursor: cursor.executemany(sql, parameters))

    async def fetchone(self) -> Any:
        """Returns the next row, or None."""
        return self._rows.pop(0) if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Returns the next rows."""
        rows = self._rows[: size or self.arraysize]
        del self._rows[: len(rows)]
        return rows

    async def fetchall(self) -> list[Any]:
        """Returns the rest of the rows."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Forgets the rows; SQLite's cursor is closed already."""
        self._rows = []

    async def _trip(self, execute: Callable[[sqlite3.Cursor], Any]) -> Self:
        def there() -> None:
            cursor = self._connection.in_thread()
            try:
                execute(cursor)
                self._rows = cursor.fetchall() if cursor.description else []
                self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
            finally:
                cursor.close()

        await self._connection.trip(there)
        return self


class OneTripConnection(aiosqlite.Connection):
    """An aiosqlite connection with one-trip cursors."""

    _settled = True

    def cursor(self) -> OneTripCursor:  # type: ignore[override]  # aiosqlite's is a trip and its own class
        """Returns a cursor, without a trip."""
        return OneTripCursor(self)

    async def rollback(self) -> None:
        """Rolls back, if there is anything: the pool asks for it at each return, after units of work that ended."""
        if not self._settled or self._conn.in_transaction:
            await super().rollback()

    async def trip(self, work: Callable[[], None]) -> None:
        """Runs work in the connection's thread."""
        # Whoever is cancelled here leaves work behind that may begin a transaction yet.
        self._settled = False
        await self._execute(work)  # type: ignore[no-untyped-call]
        self._settled = True

    def in_thread(self) -> sqlite3.Cursor:
        """Returns a cursor of SQLite's; to be called in the connection's thread."""
        return self._conn.cursor()


def connector(database: str) -> Callable[[], OneTripConnection]:
    """Returns what the engine calls for a new connection to a database file."""

    def connect() -> OneTripConnection:
        # As SQLAlchemy's own dialect opens a file; its garbage collection closes from another thread.
        made = OneTripConnection(lambda: sqlite3.connect(database, check_same_thread=False), iter_chunk_size=64)
        made._thread.daemon = True  # noqa: SLF001  # as SQLAlchemy's own dialect does
        return made

    return connect
