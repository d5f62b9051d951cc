"""Imports restore points that only storage knows: this service lists them as backups, the repository adopts them.

Rows come first, since the repository's rows refer to them; what the repository then refuses is hidden again. Each VM is
imported by itself, so that one that cannot be harms no other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import groupby

import structlog

from sendense_backup.clients.rebuild import RebuildClient
from sendense_backup.clients.repository import RepositoryClient
from sendense_backup.errors import PointNotImportable
from sendense_backup.model import Repository, StoredPoint
from sendense_backup.store import Catalogue
from sendense_rpc.errors import RemoteError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refused:
    """A backup that could not be imported, and why."""

    backup_id: str
    reason: str
    message: str


@dataclass(slots=True)
class Imported:
    """What an import did."""

    backup_ids: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


class Importer:
    """Imports restore points."""

    def __init__(self, catalogue: Catalogue, repository: RepositoryClient, rebuild: RebuildClient) -> None:
        self._catalogue = catalogue
        self._repository = repository
        self._rebuild = rebuild

    async def run(self, repository_name: str, backup_ids: Collection[str]) -> Imported:
        """Imports points of a repository; none named means all that can be.

        Raises:
            RemoteError: REPOSITORY_NOT_FOUND, REPOSITORY_UNUSABLE.
            PointNotImportable: A named one is neither known nor whole on storage.
        """
        repository = await self._repository.repository(repository_name)
        found = [point async for point in self._rebuild.stored_points(repository.repository_id)]
        if backup_ids:
            await self._require_known(repository, set(backup_ids) - {point.backup_id for point in found})
            found = [point for point in found if point.backup_id in backup_ids]
        outcome = Imported()
        for _, points in groupby(found, key=lambda point: point.vm_uuid):
            await self._import_vm(repository, list(points), outcome)
        log.info("points imported", repository=repository.name, imported=len(outcome.backup_ids))
        return outcome

    async def _require_known(self, repository: Repository, missing: Collection[str]) -> None:
        for backup_id in sorted(missing):
            if await self._repository.point(backup_id) is None:
                raise PointNotImportable(backup_id, repository.name)

    async def _import_vm(self, repository: Repository, points: list[StoredPoint], outcome: Imported) -> None:
        contexts = await self._catalogue.imports.put(points, repository)
        for point in points:
            try:
                adopted = await self._rebuild.adopt(
                    repository.repository_id, [point.backup_id], contexts[point.backup_id]
                )
            except RemoteError as error:
                await self._catalogue.jobs.mark_deleted([point.backup_id])
                outcome.refused.append(Refused(point.backup_id, error.reason, error.message))
                continue
            outcome.backup_ids += adopted
