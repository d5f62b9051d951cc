"""Refuses what an older execution of a job asks for: after a stall it may still run beside its successor.

The newest attempts are kept in a file, so that a restart of the agent lets nobody in again. It is written before an
attempt does anything. A file that cannot be read is begun anew, and the log says so: an agent that refuses all work
helps nobody, and the services behind it have fences of their own.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path

import structlog

from sendense_agent.errors import StaleAttempt
from sendense_agent.model import Holder

log = structlog.get_logger()

REMEMBERED_JOBS = 2000


class Fence:
    """Remembers the newest attempt of each job (of the newest jobs).

    Args:
        file: Where it is kept; None keeps it in memory only.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._newest: OrderedDict[str, int] = OrderedDict(_read(file))

    def admit(self, holder: Holder) -> None:
        """Remembers an attempt.

        Raises:
            StaleAttempt: A newer one was seen.
            OSError: It cannot be written down.
        """
        newest = self._newest.get(holder.job_id, 0)
        if holder.attempt < newest:
            raise StaleAttempt(holder.job_id, holder.attempt, newest)
        if holder.attempt == newest:
            return
        self._newest[holder.job_id] = holder.attempt
        self._newest.move_to_end(holder.job_id)
        while len(self._newest) > REMEMBERED_JOBS:
            self._newest.popitem(last=False)
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        partial = self._file.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(self._newest, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._file)


def _read(file: Path | None) -> dict[str, int]:
    if file is None or not file.exists():
        return {}
    try:
        known = json.loads(file.read_text())
        return {str(job): int(attempt) for job, attempt in known.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        log.error("the fence cannot be read and begins anew", file=str(file), error=str(error))  # noqa: TRY400  # known
        return {}
