"""What the workflows work with in this process, and what one execution of a job knows.

DBOS recovers workflows by their function's name, so they are module-level functions and find their parts here: `main`
(or a test) installs a `Runtime` before DBOS is launched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import stamina
import structlog

from sendense_backup.clients.agents import AgentClient, Agents
from sendense_backup.clients.exports import ExportsClient
from sendense_backup.clients.maintenance import MaintenanceClient
from sendense_backup.clients.repository import RepositoryClient
from sendense_backup.config import BackupSettings
from sendense_backup.model import Holder, Job, KnownVm, Repository
from sendense_backup.store import Catalogue
from sendense_db.engine import RECONNECT_SECONDS, outlast
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

Value = TypeVar("Value")


class Observer:
    """Sees the steps pass; tests fail a step or kill the process from here. Names are those of `durable.run`."""

    async def begins(self, backup_id: str, step: str) -> None:
        """Called before a step does its work; an error fails the step."""

    async def executed(self, backup_id: str, step: str) -> None:
        """Called when a step has done its work and DBOS has not recorded it yet; an error fails the step."""

    async def recorded(self, backup_id: str, step: str) -> None:
        """Called when DBOS has recorded a step."""


@dataclass(frozen=True)
class Runtime:
    """The parts."""

    catalogue: Catalogue
    agents: Agents
    repository: RepositoryClient
    maintenance: MaintenanceClient
    exports: ExportsClient
    settings: BackupSettings
    observer: Observer = field(default_factory=Observer)
    handed_over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job waits for its release: the caretaker then looks at once."""
    place_free: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job was added to the line or left its place: the doorkeeper then looks at once."""
    tick: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a run of a policy may go on: the scheduler then looks at once."""

    def job_ended(self) -> None:
        """Says that a job left its place: the next in line, and the run that it belongs to, go on at once."""
        self.place_free.set()
        self.tick.set()

    async def patiently(self, call: Callable[[], Awaitable[Value]], *, seconds: float | None = None) -> Value:
        """Repeats a call that fails for a passing reason.

        Args:
            call: Must be idempotent.
            seconds: How long, instead of the setting `retry_seconds`.

        Raises:
            SendenseError: It failed for good, or still when the time was over.
        """
        async for attempt in stamina.retry_context(
            on=is_passing,
            attempts=None,
            timeout=self.settings.retry_seconds if seconds is None else seconds,
            wait_initial=0.1,
            wait_max=5.0,
        ):
            with attempt:
                return await call()
        raise AssertionError("unreachable")

    async def outlasting(self, call: Callable[[], Awaitable[Value]]) -> Value:
        """Repeats a call whose database went away in the middle of it, until the setting `outage_seconds` is over.

        Args:
            call: Must be idempotent: what it did last may have been committed.
        """
        deadline = time.monotonic() + self.settings.outage_seconds
        while True:
            try:
                return await call()
            except Exception as error:
                if not self.catalogue.database.is_outage(error) or time.monotonic() > deadline:
                    raise
                log.warning("the database went away, going on when it is back", error=type(error).__name__)
                await asyncio.sleep(RECONNECT_SECONDS)

    async def default_or(self, name: str) -> Repository:
        """Returns a repository by its name; the one that backups go to without saying so when it is empty."""
        return await self.repository.repository(name or self.settings.default_repository)

    async def datastores_of(self, known: KnownVm) -> tuple[str, ...]:
        """Returns the datastores of a VM; asked for only where they limit jobs, since it costs a look at vCenter."""
        if not self.settings.jobs_per_datastore:
            return ()
        client = await self.agents.agent(known.agent_id)
        return (await client.inspect(known.vm.ref)).datastores


def is_passing(error: Exception) -> bool:
    """Tells whether the same call may succeed later without any change."""
    return isinstance(error, SendenseError) and error.retryable


class Execution(Protocol):
    """One execution of a job of any kind, as far as its steps' frame is concerned."""

    @property
    def runtime(self) -> Runtime:
        """The parts."""

    @property
    def job_id(self) -> str:
        """The job."""

    @property
    def attempt(self) -> int:
        """Claimed by this execution alone."""

    async def enter(self, phase: str, position: int | None = None) -> bool:
        """Records the step that the job, and one of its disks, is at; returns whether somebody asked it to stop."""


@dataclass(frozen=True)
class Work:
    """One execution of a backup.

    Attributes:
        runtime: The parts.
        backup_id: The job.
        attempt: Claimed by this execution alone; carried by each mutation, so that services refuse older ones.
    """

    runtime: Runtime = field(repr=False)
    backup_id: str
    attempt: int

    @property
    def job_id(self) -> str:
        """The job."""
        return self.backup_id

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue."""
        return self.runtime.catalogue

    @property
    def holder(self) -> Holder:
        """The fencing token of this execution."""
        return Holder(self.backup_id, self.attempt)

    async def enter(self, phase: str, position: int | None = None) -> bool:
        """Records the step that the backup, and one of its disks, is at; returns whether it was asked to stop."""
        return await self.catalogue.running.enter(self.backup_id, self.attempt, phase, position)

    async def job(self) -> Job:
        """Returns the job as it is now."""
        return await self.catalogue.running.read(self.backup_id)

    async def agent(self) -> AgentClient:
        """Returns the agent that knows the job's VM.

        Raises:
            NoAgent: It is not connected now.
        """
        return await self.runtime.agents.agent((await self.job()).agent_id)

    async def log(self, level: str, step: str, message: str, **data: object) -> None:
        """Adds a line to the job's log."""
        await self.catalogue.log.write(self.backup_id, level, step, message, attempt=self.attempt, **data)

    async def set_disk(self, position: int, **values: object) -> None:
        """Writes columns of one of the job's disks."""
        await self.catalogue.running.update_disk(self.backup_id, self.attempt, position, **values)

    async def set_job(self, **values: object) -> None:
        """Writes columns of the job."""
        await self.catalogue.running.update_job(self.backup_id, self.attempt, **values)


class _Installed:
    runtime: Runtime | None = None
    executions: set[asyncio.Task[object]] = set()  # noqa: RUF012  # of this process, like the runtime


@contextmanager
def tracked() -> Iterator[None]:
    """Counts an execution of a workflow as running for the time of the block."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a workflow runs in a task")
    _Installed.executions.add(task)
    outlast.set(current().settings.outage_seconds)  # for this task and what it starts
    try:
        yield
    finally:
        _Installed.executions.discard(task)


async def stop_executions() -> None:
    """Stops what runs in this process, without undoing anything: it goes on when the service starts again."""
    running = list(_Installed.executions)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def install(runtime: Runtime | None) -> None:
    """Makes `runtime` the one of this process; None takes it away."""
    _Installed.runtime = runtime


def current() -> Runtime:
    """Returns this process's runtime."""
    if _Installed.runtime is None:
        raise RuntimeError("no runtime is installed: workflows run in the backup service only")
    return _Installed.runtime
