"""Who this process is to DBOS, and how a dead one's jobs are taken over.

DBOS recovers nothing of another executor by itself, and with a shared id it would run a live one's steps twice
(platform-facts). So a process holds a lock on its executor id: whoever can take a lock of an executor with pending
workflows knows that it is dead.

With SQLite there is one backup process, held to that by a lock on a file; its id is fixed, so what an earlier process
left pending is DBOS's to recover at launch. With PostgreSQL each process has an id of its own and holds an advisory
lock on it over a connection of its own. When that connection is lost for longer than `RECONNECT_SECONDS`, the process
ends: others may have taken its jobs (fencing keeps the two apart until then).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import IO, Protocol

import psycopg
import structlog

from sendense_backup.config import BackupSettings
from sendense_rpc.errors import Kind, SendenseError

log = structlog.get_logger()

LOCK_SPACE = 0x53454E
"""First key of the advisory locks on executor ids."""
LOOK_SECONDS = 2.0
"""Pause between two looks at the own connection and at other executors: how soon a dead one is noticed."""
RECONNECT_SECONDS = 30.0
"""How long a process goes on without its lock's connection, while PostgreSQL starts again."""


class AlreadyRunning(SendenseError):
    """Another backup process works on this state directory."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"another backup service holds {path}",
            kind=Kind.FAILED_PRECONDITION,
            reason="ALREADY_RUNNING",
            help="Stop it first; several replicas need PostgreSQL (SENDENSE_DATABASE_URL).",
        )


Pending = Callable[[], Awaitable[dict[str, list[str]]]]
"""Returns for each executor its pending workflows."""
TakeOver = Callable[[list[str]], Awaitable[None]]
"""Makes workflows of a dead executor run again."""


class Executor(Protocol):
    """This process's identity."""

    @property
    def executor_id(self) -> str:
        """The id that DBOS notes for each workflow."""

    async def acquire(self) -> None:
        """Takes the lock on the id."""

    async def watch(self, pending: Pending, take_over: TakeOver) -> None:
        """Looks after the own lock and after other executors until it is cancelled."""

    async def release(self) -> None:
        """Gives the lock back."""


def executor_for(settings: BackupSettings) -> Executor:
    """Returns the executor for the configured database."""
    return OnlyProcess(settings) if settings.embedded else Replica(settings.workflow_url)


class OnlyProcess:
    """The one backup process beside an embedded catalogue."""

    executor_id = "embedded"

    def __init__(self, settings: BackupSettings) -> None:
        self._path = settings.executor_lock
        self._lock: IO[str] | None = None

    async def acquire(self) -> None:
        """Takes the lock.

        Raises:
            AlreadyRunning: Another process has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self._path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise AlreadyRunning(str(self._path)) from error
        self._lock = lock

    async def watch(self, pending: Pending, take_over: TakeOver) -> None:
        """Has nothing to look after: there is no other process."""
        del pending, take_over

    async def release(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class Replica:
    """One of any number of backup processes on a PostgreSQL.

    Args:
        url: Of the database with DBOS's tables.
    """

    def __init__(self, url: str) -> None:
        self._url = "postgresql://" + url.partition("://")[2]
        self._connection: psycopg.AsyncConnection | None = None
        self.executor_id = f"backup-{uuid.uuid4().hex}"

    async def acquire(self) -> None:
        """Takes the lock on the new id.

        Raises:
            psycopg.Error: The database does not answer.
        """
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, connect_timeout=5, application_name=self.executor_id,
            keepalives_idle=5, keepalives_interval=2, keepalives_count=3,
        )  # fmt: skip
        self._connection = connection
        if not await self._try_lock(self.executor_id):
            raise AlreadyRunning(self.executor_id)

    async def watch(self, pending: Pending, take_over: TakeOver) -> None:
        """Takes over what dead executors left, and ends the process when its own lock is lost for good."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look(pending, take_over)
            except psycopg.OperationalError as error:
                log.warning("the lock's connection was lost", error=str(error))
                await self._reconnect()
            except Exception:  # DBOS's own connections break too: the next look sees
                log.exception("a look at other executors failed")

    async def release(self) -> None:
        """Gives the lock back with its connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _look(self, pending: Pending, take_over: TakeOver) -> None:
        await self._ask("SELECT true")
        for executor_id, workflows in (await pending()).items():
            if executor_id == self.executor_id or not await self._try_lock(executor_id):
                continue
            try:
                # It is dead and nobody else looks at it now. Whether it still has them is asked again under the lock.
                left = (await pending()).get(executor_id, [])
                if left:
                    log.warning("taking over jobs of a dead executor", executor=executor_id, workflows=left)
                    await take_over(left)
            finally:
                await self._ask("SELECT pg_advisory_unlock(%s, hashtext(%s))", LOCK_SPACE, executor_id)
            del workflows

    async def _reconnect(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RECONNECT_SECONDS):
                while True:
                    await self.release()
                    try:
                        await self.acquire()
                    except (psycopg.OperationalError, AlreadyRunning):
                        await asyncio.sleep(0.5)
                    else:
                        log.info("the lock is held again", executor=self.executor_id)
                        return
        log.error("the lock is lost for good: the process ends, others take its jobs", executor=self.executor_id)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _try_lock(self, executor_id: str) -> bool:
        return await self._ask("SELECT pg_try_advisory_lock(%s, hashtext(%s))", LOCK_SPACE, executor_id)

    async def _ask(self, statement: str, *values: object) -> bool:
        if self._connection is None:
            raise psycopg.OperationalError("there is no connection")
        async with asyncio.timeout(10), self._connection.cursor() as cursor:
            await cursor.execute(statement.encode(), values or None)
            row = await cursor.fetchone()
        return bool(row and row[0])
