"""Refuses what an older execution of a job asks for: after a stall it may still run beside its successor."""

from __future__ import annotations

from collections import OrderedDict

from sendense_agent.errors import StaleAttempt
from sendense_agent.model import Holder

REMEMBERED_JOBS = 10_000


class Fence:
    """Remembers the newest attempt of each job since the agent's start (the newest jobs only)."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, int] = OrderedDict()

    def admit(self, holder: Holder) -> None:
        """Remembers an attempt.

        Raises:
            StaleAttempt: A newer one was seen.
        """
        newest = self._newest.get(holder.job_id, 0)
        if holder.attempt < newest:
            raise StaleAttempt(holder.job_id, holder.attempt, newest)
        self._newest[holder.job_id] = holder.attempt
        self._newest.move_to_end(holder.job_id)
        while len(self._newest) > REMEMBERED_JOBS:
            self._newest.popitem(last=False)
