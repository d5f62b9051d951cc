"""A database whose writers of this process wait in line.

Many jobs write at once. With SQLite, writers that meet at the lock sleep in its busy handler, up to 100 ms a time, in
no order: of 28 jobs at once some starved. In line, each goes on the moment the one before ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_db.engine import Database


class InLine(Database):
    """A `Database`; on SQLite its `begin` lets one writer of this process in at a time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._one_writer = make_url(url).get_backend_name() == "sqlite"
        self._line = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A unit of work that writes."""
        if not self._one_writer:
            async with super().begin() as connection:
                yield connection
            return
        async with self._line, super().begin() as connection:
            yield connection
