"""Opens repositories by what they are kept in: the one place that knows which adapter serves which type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sendense_repository.directory_repository import DirectoryRepository
from sendense_repository.errors import InvalidValue, LayerNotFound
from sendense_repository.records import RepositoryRecord
from sendense_repository.repository_port import Repository
from sendense_repository.storage_kinds import DIRECTORY_TYPES
from sendense_repository.wiring import Parts

Adapter = Callable[[Parts, RepositoryRecord], Repository]

ADAPTERS: Mapping[str, Adapter] = dict.fromkeys(DIRECTORY_TYPES, DirectoryRepository)
"""Which adapter serves which type of repository."""


class Repositories:
    """The repositories that are registered, each behind the port."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def open(self, id_or_name: str) -> Repository:
        """Returns a repository.

        Raises:
            RepositoryNotFound: There is none.
        """
        record = await self._parts.registry.find(id_or_name)
        adapter = ADAPTERS.get(record.repository_type)
        if adapter is None:
            raise InvalidValue("repository_type", f"'{record.repository_type}' is not served by this version")
        return adapter(self._parts, record)

    async def of_layer(self, layer_id: str) -> Repository:
        """Returns the repository that a layer lies in.

        Raises:
            LayerNotFound: There is no such layer.
        """
        layer = await self._parts.catalogue.layers.find(layer_id)
        if layer is None:
            raise LayerNotFound(layer_id)
        return await self.open(layer.repository_id)
