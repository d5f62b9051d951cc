"""The real backup service, except that jobs of chosen VMs hang at chosen steps (HANG_AT), to be killed there."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from sendense_backup.config import BackupSettings
from sendense_backup.main import NAME, build
from sendense_backup.workflows import caretaker, durable, engine
from sendense_backup.workflows.runtime import Observer
from sendense_rpc.server import run


class Hanger(Observer):
    """Leaves a mark and waits when a job reaches its step: for ever, or until a file `<mark>.go` is there."""

    def __init__(self, plan: dict[str, list[str]], marks: Path) -> None:
        self._plan, self._marks = plan, marks

    async def _look(self, job_id: str, step: str, moment: str) -> None:
        vm = job_id.partition("-")[2].rsplit("-", 1)[0]
        if self._plan.get(vm) == [step, moment]:
            (self._marks / vm).touch()
            while not (self._marks / f"{vm}.go").exists():  # noqa: ASYNC110  # another process makes it
                await asyncio.sleep(0.1)

    async def begins(self, backup_id: str, step: str) -> None:
        await self._look(backup_id, step, "begins")

    async def executed(self, backup_id: str, step: str) -> None:
        await self._look(backup_id, step, "executed")

    async def recorded(self, backup_id: str, step: str) -> None:
        await self._look(backup_id, step, "recorded")


if __name__ == "__main__":
    # As if the workflows' steps had been others then: DBOS notes the version with each workflow.
    for module in (durable, engine, caretaker):
        module.APPLICATION_VERSION = os.environ.get("SENDENSE_TEST_VERSION", durable.APPLICATION_VERSION)
    settings = BackupSettings()
    hanger = Hanger(json.loads(os.environ["HANG_AT"]), Path(os.environ["HANG_MARKS"]))
    run(lambda: build(settings, hanger), settings, NAME)
