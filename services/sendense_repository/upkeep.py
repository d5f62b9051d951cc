"""Puts together what keeps repositories in order: verification, retention, rebuilding, administration."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from sendense_repository.administration import Administration
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.rebuild import Rebuilder
from sendense_repository.retention_desk import RetentionDesk
from sendense_repository.scan import Scanner
from sendense_repository.verification import VerificationDesk
from sendense_repository.wiring import Parts

log = structlog.get_logger()

_LOOK_SECONDS = 600.0
"""How often the clock is followed and usage is noted."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What the servicers of upkeep call."""

    integrity: IntegrityView
    verification: VerificationDesk
    retention: RetentionDesk
    administration: Administration
    scanner: Scanner
    rebuilder: Rebuilder
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Notes what the last process left unfinished; called after `Parts.start`."""
        await self.verification.recover()
        await self.retention.recover()
        await self.administration.tick()
        # Not waited for: a file server that hangs must not keep the service from starting.
        self._tasks.append(asyncio.create_task(self._keep_looking()))

    async def stop(self) -> None:
        """Stops what runs; each part goes on when it is started again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.verification.close()
        await self.retention.close()

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                # The catalogue may be away for a while; the next look tells.
                log.exception("the repositories could not be looked at")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """Follows the clock, and notes how full the repositories are."""
        await self.administration.tick()
        await self.administration.sample()


def build_upkeep(parts: Parts, verify_bytes_per_second: int = 0) -> Upkeep:
    """Builds the parts of upkeep over the service's other parts.

    Args:
        parts: The service's other parts.
        verify_bytes_per_second: The most that a verification reads that names no rate; 0 for no limit.
    """
    integrity = IntegrityView(parts.catalogue)
    scanner = Scanner(parts.catalogue, parts.registry, parts.locks, parts.reconciler)
    return Upkeep(
        integrity=integrity,
        verification=VerificationDesk(parts.catalogue, parts.points, integrity, verify_bytes_per_second),
        retention=RetentionDesk(parts.catalogue, parts.registry, integrity, parts.deleter),
        administration=Administration(parts.catalogue, parts.registry),
        scanner=scanner,
        rebuilder=Rebuilder(parts.catalogue, parts.registry, parts.locks, scanner),
    )
