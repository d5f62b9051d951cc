"""The doorkeeper: lets waiting jobs in, as the limits and the policies' windows allow, and queues their workflows.

Each replica has one; the line's own transaction keeps them from letting in more than the limits together. It looks when
a job was added or ended in this process, and otherwise every `LOOK_SECONDS`, for what happened in the others.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Self

import structlog

from sendense_backup.policy import opens_at
from sendense_backup.store.line import Limits
from sendense_backup.workflows.engine import Engine
from sendense_backup.workflows.runtime import Runtime
from sendense_db.columns import utc_now

log = structlog.get_logger()

LOOK_SECONDS = 1.0


class Doorkeeper:
    """Lets jobs in until it is left; an async context manager.

    Args:
        runtime: The parts.
        engine: Runs the workflows.
    """

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self._runtime = runtime
        self._engine = engine
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._runtime.place_free.clear()
            try:
                await self.let_in()
            except Exception:  # the catalogue may be away for a while: the next look sees
                log.exception("the line could not be looked at")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._runtime.place_free.wait()
            except TimeoutError:
                continue

    async def let_in(self, moment: datetime | None = None) -> None:
        """Lets in those who may run now."""
        settings = self._runtime.settings
        limits = Limits(
            settings.jobs_at_once,
            settings.jobs_per_agent,
            settings.jobs_per_repository,
            settings.jobs_per_datastore,
        )
        for each in await self._runtime.catalogue.line.let_in(limits, moment or utc_now(), opens_at):
            await self._engine.enqueue(each.job_id, each.kind)
