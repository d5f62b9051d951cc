"""Registered repositories: register, find, and prove at each use that the root is mounted and ours."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from sendense_db.columns import utc_now
from sendense_repository import root as roots
from sendense_repository.errors import (
    NoRoom,
    RepositoryDisabled,
    RepositoryExists,
    RepositoryNotFound,
    RepositoryUnusable,
)
from sendense_repository.options import RepositoryOptions
from sendense_repository.records import RepositoryRecord
from sendense_repository.storage_kinds import kind_of
from sendense_repository.store import Catalogue

log = structlog.get_logger()

DEFAULT_NAME = "local"


class Registry:
    """The repositories of this machine.

    Args:
        catalogue: Where they are registered.
        reserve_bytes: Room of each file system that is never used.
    """

    def __init__(self, catalogue: Catalogue, reserve_bytes: int) -> None:
        self._catalogue = catalogue
        self._reserve_bytes = reserve_bytes
        self._registering = asyncio.Lock()

    async def all(self) -> list[RepositoryRecord]:
        """Returns every repository by name, its room looked at now where its root is there."""
        return [await self._with_room(record) for record in await self._catalogue.repositories.all()]

    async def get(self, id_or_name: str) -> RepositoryRecord:
        """Returns a repository, its room looked at now where its root is there.

        Raises:
            RepositoryNotFound: There is none.
        """
        return await self._with_room(await self.find(id_or_name))

    async def use(self, id_or_name: str) -> RepositoryRecord:
        """Returns a repository whose root is there and carries its marker: files in it may be changed.

        Raises:
            RepositoryNotFound: There is none.
            RepositoryUnusable: Its root is missing or another's.
        """
        record = await self.find(id_or_name)
        await asyncio.to_thread(kind_of(record.repository_type).require_usable, record.path, record.repository_id)
        return record

    async def use_for_backup(self, id_or_name: str) -> RepositoryRecord:
        """Returns a repository that new backups may be written to.

        Raises:
            RepositoryNotFound: There is none.
            RepositoryDisabled: It takes no new backups.
            RepositoryUnusable: Its root is missing or another's.
        """
        record = await self.use(id_or_name)
        if not record.enabled:
            raise RepositoryDisabled(record.name)
        return record

    async def create(
        self, name: str, repository_type: str, path: Path, options: RepositoryOptions | None = None
    ) -> RepositoryRecord:
        """Registers an empty directory, or a repository of ours that is in it.

        Raises:
            RepositoryExists: The name, the directory or the repository is registered.
            RepositoryUnusable: The directory cannot keep backups.
            InvalidValue: There is no such type.
        """
        async with self._registering:
            path = roots.normal_path(path)
            await self._refuse_known(name, path)
            await asyncio.to_thread(kind_of(repository_type).require_fit, path)
            options = options or RepositoryOptions()
            reserve = self._reserve(options)
            room = await asyncio.to_thread(roots.probe, path, reserve)
            marker = await asyncio.to_thread(roots.read_marker, path)
            if marker is None:
                marker = await asyncio.to_thread(roots.write_marker, path, name)
            elif known := await self._catalogue.repositories.find(marker.repository_id):
                raise RepositoryExists(f"the repository in {path}", known.name)
            now = utc_now()
            record = RepositoryRecord(
                repository_id=marker.repository_id,
                name=name,
                repository_type=repository_type,
                path=path,
                enabled=True,
                total_size_bytes=room.total,
                available_size_bytes=max(0, room.free - reserve),
                created_at=now,
                updated_at=now,
                options=options,
            )
            await self._catalogue.repositories.add(record)
        log.info("repository registered", name=name, path=str(path), repository_id=record.repository_id)
        return record

    async def keep(self, record: RepositoryRecord) -> None:
        """Keeps a repository's name, settings and whether it is enabled.

        Raises:
            RepositoryExists: The name is taken.
        """
        async with self._registering:
            other = await self._catalogue.repositories.find(record.name)
            if other is not None and other.repository_id != record.repository_id:
                raise RepositoryExists(f"the name '{record.name}'", other.name)
            await self._catalogue.repositories.update(record)

    async def ensure_default(self, root: Path) -> None:
        """Registers the default repository when none of its name is there; a registered one is left as it is.

        Raises:
            RepositoryUnusable: The directory cannot keep backups.
        """
        known = await self._catalogue.repositories.find(DEFAULT_NAME)
        if known is not None:
            if known.path != root:
                log.warning("the repository 'local' stays where it was registered", path=str(known.path))
            return
        try:
            await asyncio.to_thread(root.mkdir, mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise RepositoryUnusable(root, f"it cannot be made: {error.strerror}") from error
        await self.create(DEFAULT_NAME, "local", root)

    async def check_default(self) -> None:
        """Raises RepositoryUnusable unless the default repository can be used; a forgotten one is not missed."""
        if await self._catalogue.repositories.find(DEFAULT_NAME) is not None:
            await self.use(DEFAULT_NAME)

    async def require_room(self, record: RepositoryRecord, estimated_bytes: int, *, layer_id: str = "") -> None:
        """Raises NoRoom unless what is estimated fits beside the reserve and what running jobs may still write.

        Args:
            record: The repository.
            estimated_bytes: The most that will be written.
            layer_id: The layer that it will be written to, whose earlier estimate then does not count.
        """
        promised = 0
        for layer in await self._catalogue.layers.partial(record.repository_id):
            if layer.layer_id != layer_id:
                promised += max(0, layer.estimated_bytes - layer.files(record.path).stored_bytes())
        needed = estimated_bytes + promised + self._reserve(record.options)
        free = roots.room(record.path).free
        if needed > free:
            raise NoRoom(record.path, needed, free)

    def no_room(self, record: RepositoryRecord, needed_bytes: int) -> NoRoom:
        """Returns the error for a file system that ran full in the middle of a write."""
        return NoRoom(record.path, needed_bytes + self._reserve(record.options), roots.room(record.path).free)

    async def find(self, id_or_name: str) -> RepositoryRecord:
        """Returns a repository as it was last looked at.

        Raises:
            RepositoryNotFound: There is none.
        """
        record = await self._catalogue.repositories.find(id_or_name)
        if record is None:
            known = await self._catalogue.repositories.all()
            raise RepositoryNotFound(id_or_name, [each.name for each in known])
        return record

    async def _refuse_known(self, name: str, path: Path) -> None:
        for known in await self._catalogue.repositories.all():
            if known.name == name:
                raise RepositoryExists(f"the name '{name}'", known.name)
            if path.is_relative_to(known.path) or known.path.is_relative_to(path):
                raise RepositoryExists(f"{path} (or a directory above or below it)", known.name)

    async def _with_room(self, record: RepositoryRecord) -> RepositoryRecord:
        try:
            await asyncio.to_thread(kind_of(record.repository_type).require_usable, record.path, record.repository_id)
            room = await asyncio.to_thread(roots.room, record.path)
        except (RepositoryUnusable, OSError) as error:
            log.warning("the room of a repository cannot be seen", name=record.name, error=str(error))
            return record
        usable = max(0, room.free - self._reserve(record.options))
        if (room.total, usable) != (record.total_size_bytes, record.available_size_bytes):
            await self._catalogue.repositories.record_room(record.repository_id, room.total, usable)
        return await self._catalogue.repositories.find(record.repository_id) or record

    def reserve_bytes(self, record: RepositoryRecord) -> int:
        """Returns the room of a repository's file system that is never used."""
        return self._reserve(record.options)

    def _reserve(self, options: RepositoryOptions) -> int:
        return self._reserve_bytes if options.reserve_bytes is None else options.reserve_bytes
