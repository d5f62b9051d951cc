"""Administers repositories: shows how they fill, edits, probes and forgets them; storage is never changed here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog

from sendense_db.columns import utc_now
from sendense_repository import root as roots
from sendense_repository.errors import InvalidValue, RepositoryUnusable
from sendense_repository.file_flags import supports_immutable
from sendense_repository.forecast import WINDOW, Forecast, forecast, warning
from sendense_repository.options import RepositoryOptions
from sendense_repository.probing import Trial, try_directory
from sendense_repository.records import RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.store import Catalogue
from sendense_repository.trusted_clock import read_machine
from sendense_repository.upkeep_errors import RepositoryNotEmpty

log = structlog.get_logger()

MAX_RESERVE_BYTES = 1 << 60
MAX_LOCK_SECONDS = 100 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a repository is, besides its row.

    Attributes:
        point_count: Restore points.
        stored_bytes: What its layers take.
        forecast: How it grows.
        warning: What an administrator should know now, empty for nothing.
        problem: Why it cannot be used now, empty when it can.
    """

    point_count: int
    stored_bytes: int
    forecast: Forecast
    warning: str
    problem: str


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be changed; None leaves it."""

    name: str | None = None
    enabled: bool | None = None
    reserve_bytes: int | None = None
    lock_seconds: int | None = None
    immutable_files: bool | None = None


class Administration:
    """The administrator's use cases."""

    def __init__(self, catalogue: Catalogue, registry: Registry) -> None:
        self._catalogue = catalogue
        self._registry = registry

    async def outlook(self, record: RepositoryRecord) -> Outlook:
        """Returns how a repository is; its room is that of the record."""
        now = utc_now()
        usage = self._catalogue.usage
        samples = await usage.samples(record.repository_id, now - WINDOW)
        found = forecast(samples, record.available_size_bytes, now)
        problem = ""
        try:
            await asyncio.to_thread(roots.require_marker, record.path, record.repository_id)
        except RepositoryUnusable as error:
            problem = error.finding
        return Outlook(
            point_count=await usage.points(record.repository_id),
            stored_bytes=await usage.stored_bytes(record.repository_id),
            forecast=found,
            warning="" if problem else self._warning(record, found, now),
            problem=problem,
        )

    def _warning(self, record: RepositoryRecord, found: Forecast, now: datetime) -> str:
        return warning(record.name, record.total_size_bytes, record.available_size_bytes, found, now)

    async def tick(self) -> None:
        """Follows the machine's clock: what passes while nobody looks is believed less over a restart."""
        await self._catalogue.clock.tick(read_machine())

    async def sample(self) -> None:
        """Notes how much each repository holds today, and warns in the log of those that fill."""
        for record in await self._registry.all():
            stored = await self._catalogue.usage.stored_bytes(record.repository_id)
            await self._catalogue.usage.sample(record.repository_id, stored, utc_now())
            outlook = await self.outlook(record)
            if outlook.warning:
                log.warning("a repository fills", name=record.name, warning=outlook.warning)

    async def create(self, name: str, repository_type: str, path: Path, options: RepositoryOptions) -> RepositoryRecord:
        """Registers a directory, as `Registry.create`, with settings.

        Raises:
            InvalidValue: A number is out of bounds.
        """
        _within("reserve_bytes", options.reserve_bytes or 0, MAX_RESERVE_BYTES)
        _within("lock_seconds", options.lock_seconds, MAX_LOCK_SECONDS)
        record = await self._registry.create(name, repository_type, path, replace(options, immutable_files=False))
        if not options.immutable_files:
            return record
        return await self.update(record.repository_id, Change(immutable_files=True))

    async def update(self, id_or_name: str, change: Change) -> RepositoryRecord:
        """Changes a repository's name, settings or whether it is enabled, and returns it.

        Raises:
            RepositoryNotFound: There is none.
            RepositoryExists: The name is taken.
            InvalidValue: A number is out of bounds.
            RepositoryUnusable: The file system has no immutable attribute.
        """
        record = await self._registry.get(id_or_name)
        options = record.options
        if change.reserve_bytes is not None:
            options = replace(options, reserve_bytes=_within("reserve_bytes", change.reserve_bytes, MAX_RESERVE_BYTES))
        if change.lock_seconds is not None:
            options = options.with_lock(_within("lock_seconds", change.lock_seconds, MAX_LOCK_SECONDS), utc_now())
        if change.immutable_files is not None:
            if change.immutable_files and not options.immutable_files:
                record = await self._registry.use(record.repository_id)
                await asyncio.to_thread(require_immutable_files, record)
            options = replace(options, immutable_files=change.immutable_files)
        changed = replace(
            record,
            name=record.name if change.name is None else change.name,
            enabled=record.enabled if change.enabled is None else change.enabled,
            options=options,
        )
        await self._registry.keep(changed)
        log.info("repository changed", name=changed.name, enabled=changed.enabled, **options.as_json())
        return await self._registry.get(record.repository_id)

    async def probe(self, id_or_name: str) -> tuple[RepositoryRecord, list[Trial]]:
        """Tries whether backups can be kept in a repository now."""
        record = await self._registry.get(id_or_name)
        try:
            await asyncio.to_thread(roots.require_marker, record.path, record.repository_id)
        except RepositoryUnusable as error:
            # Nothing is written into a directory that is not ours.
            return record, [Trial("marker", passed=False, finding=error.finding)]
        found = Trial("marker", passed=True, finding="it is this repository's")
        return record, [found, *await asyncio.to_thread(try_directory, record.path)]

    async def forget(self, id_or_name: str, *, forget_points: bool) -> None:
        """Takes a repository out of the catalogue; storage is not touched.

        Raises:
            RepositoryNotFound: There is none.
            RepositoryNotEmpty: It has points and they are not to be forgotten, or backups run.
        """
        record = await self._registry.get(id_or_name)
        running = sorted({layer.backup_id for layer in await self._catalogue.layers.uncommitted(record.repository_id)})
        points = await self._catalogue.usage.points(record.repository_id)
        if running or (points and not forget_points):
            raise RepositoryNotEmpty(record.name, points, running)
        await self._catalogue.repositories.forget(record.repository_id)
        log.warning("repository forgotten", name=record.name, path=str(record.path), points=points)


def require_immutable_files(record: RepositoryRecord) -> None:
    """Raises RepositoryUnusable unless files of the repository can be made immutable; blocks for the disk."""
    if not supports_immutable(record.path):
        raise RepositoryUnusable(
            record.path,
            "its file system, or the service's privileges, do not let files be made immutable",
            help="Use ext4, XFS or Btrfs on a local disk, and run the service with CAP_LINUX_IMMUTABLE.",
        )


def _within(field: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise InvalidValue(field, f"{value} is not between 0 and {most}")
    return value
