"""Locks of restore points: until they have run out, nobody deletes or merges away what they protect."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sendense_repository.records import PointRecord, RepositoryRecord
from sendense_repository.store import Catalogue
from sendense_repository.trusted_clock import read_machine
from sendense_repository.upkeep_errors import PointLocked


class LockGuard:
    """Tells what is locked, by a clock that cannot be set forward."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def require_unlocked(self, repository: RepositoryRecord, points: Sequence[PointRecord]) -> None:
        """Raises PointLocked when any of some points that are to go is locked."""
        locks = {point.backup_id: locked_until(repository, point) for point in points}
        if not any(locks.values()):
            return
        now = (await self._catalogue.clock.tick(read_machine())).now
        locked = {backup_id: until for backup_id, until in locks.items() if until is not None and until > now}
        if locked:
            raise PointLocked(sorted(locked), max(locked.values()))


def locked_until(repository: RepositoryRecord, point: PointRecord) -> datetime | None:
    """Returns until when a point is locked; None when it is not."""
    return repository.options.locked_until(point.committed_at)
