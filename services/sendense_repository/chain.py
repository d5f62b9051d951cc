"""Chains: a full and the increments that build on it, of one disk."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sendense_repository.records import LayerRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.store import Catalogue


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain.

    Attributes:
        chain_id: Identifier.
        layers: Oldest first, with the bytes that each takes now.
        repository: Where it lies.
        current: Whether the next increment of this disk would build on it.
    """

    chain_id: str
    layers: Sequence[LayerRecord]
    repository: RepositoryRecord
    current: bool

    @property
    def total_size_bytes(self) -> int:
        """Bytes that its layers take on disk."""
        return sum(layer.stored_bytes for layer in self.layers)


class ChainViewer:
    """Shows chains."""

    def __init__(self, catalogue: Catalogue, registry: Registry) -> None:
        self._catalogue = catalogue
        self._registry = registry

    async def of_context(self, vm_context_id: str) -> list[Chain]:
        """Returns the chains of a VM context by disk, newest first; none for an unknown one."""
        chain_ids = await self._catalogue.points.chain_ids(vm_context_id)
        members: dict[str, list[LayerRecord]] = defaultdict(list)
        for layer in await self._catalogue.layers.of_chains(chain_ids):
            members[layer.chain_id].append(layer)
        repositories: dict[str, RepositoryRecord] = {}
        sequences: dict[str, int] = {}
        newest: set[str] = set()
        for repository_id, vm_uuid in {(each[0].repository_id, each[0].vm_uuid) for each in members.values()}:
            repositories[repository_id] = await self._registry.get(repository_id)
            points = await self._catalogue.points.of_vm(repository_id, vm_uuid)
            sequences |= {point.backup_id: point.sequence for point in points}
            newest |= {point.backup_id for point in points[:1]}
        chains = []
        for chain_id, found in members.items():
            repository = repositories[found[0].repository_id]
            layers = sorted(found, key=lambda layer: sequences.get(layer.backup_id, 0))
            sized = await asyncio.to_thread(_with_stored_bytes, layers, repository)
            current = any(layer.point_id in newest for layer in layers)
            chains.append(Chain(chain_id, sized, repository, current))
        chains.sort(key=lambda chain: -sequences.get(chain.layers[-1].backup_id, 0))
        return sorted(chains, key=lambda chain: chain.layers[0].disk_id)


def _with_stored_bytes(layers: Sequence[LayerRecord], repository: RepositoryRecord) -> list[LayerRecord]:
    """Layers with the bytes that they take now; as last recorded where the file cannot be seen."""
    return [
        replace(layer, stored_bytes=layer.files(repository.path).stored_bytes() or layer.stored_bytes)
        for layer in layers
    ]
