"""What deleting restore points means: which points and layers go, which layers are merged, who stands in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sendense_blockio.extents import align, total
from sendense_db.columns import utc_now
from sendense_repository.errors import InvalidValue, PointLeased, PointNotFound
from sendense_repository.image_lock import is_open_in_qemu
from sendense_repository.immutability import LockGuard
from sendense_repository.layout import CLUSTER_SIZE
from sendense_repository.merged_manifest import MergedManifest
from sendense_repository.merging import Merge, read_manifest
from sendense_repository.parentage import ancestry
from sendense_repository.records import LayerRecord, PointRecord, RepositoryRecord
from sendense_repository.store import Catalogue

_TABLES_SHARE = 512
"""An image's tables take 1/8192 for L2 and 1/32768 for refcounts, and some clusters: 1/512 and a MiB are enough."""
_SOME_TABLES = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a merge costs, in bytes.

    Attributes:
        copied_bytes: What is written.
        merged_bytes: What the receiving layer takes afterwards.
    """

    copied_bytes: int
    merged_bytes: int


@dataclass(frozen=True, slots=True)
class DeletionPlan:
    """What is, or would be, done.

    Attributes:
        repository: Where.
        points: Points that go, newest first.
        layers: Their layers.
        merges: Merges that keep the other points whole, the oldest receiving layer first.
        holders: Points that somebody keeps as they are now, and who.
        estimates: For each merge, when asked for.
        stored_bytes: What all concerned layers take now, when estimates were asked for.
    """

    repository: RepositoryRecord
    points: Sequence[PointRecord] = ()
    layers: Sequence[LayerRecord] = ()
    merges: Sequence[Merge] = ()
    holders: Sequence[tuple[str, str]] = ()
    estimates: Sequence[Estimate] = ()
    stored_bytes: int = 0

    @property
    def backup_ids(self) -> list[str]:
        """The points that go, newest first."""
        return [point.backup_id for point in self.points]

    def require_free(self) -> None:
        """Raises PointLeased when somebody reads what is concerned."""
        if self.holders:
            first = self.holders[0][0]
            raise PointLeased(first, [holder for backup_id, holder in self.holders if backup_id == first])

    @property
    def needed_bytes(self) -> int:
        """Room that the merges need while they run."""
        return sum(each.copied_bytes + each.copied_bytes // _TABLES_SHARE + _SOME_TABLES for each in self.estimates)

    @property
    def freed_bytes(self) -> int:
        """What comes back, as far as it can be known before."""
        return max(0, self.stored_bytes - sum(each.merged_bytes for each in self.estimates))


class DeletionPlanner:
    """Plans deletions; the caller holds the VM's lock when it acts on one."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._guard = LockGuard(catalogue)

    async def place(self, backup_ids: Collection[str]) -> tuple[str, str]:
        """Returns repository and VM of points, deleted ones included.

        Raises:
            PointNotFound: One of them never was.
            InvalidValue: They are of several VMs or repositories, or there are none.
        """
        places = set()
        for backup_id in backup_ids:
            known = await self._catalogue.points.find_any(backup_id)
            if known is None:
                raise PointNotFound(backup_id)
            places.add((known.repository_id, known.vm_uuid))
        if len(places) != 1:
            raise InvalidValue("backup_ids", "the points must be of one VM in one repository")
        return places.pop()

    async def plan(
        self, repository: RepositoryRecord, vm_uuid: str, backup_ids: Collection[str], *, cascade: bool
    ) -> DeletionPlan:
        """Returns what deleting points does now; points that are gone do not count.

        Raises:
            PointLocked: One of them is locked.
        """
        points = await self._catalogue.points.of_vm(repository.repository_id, vm_uuid)
        layers = await self._catalogue.layers.of_vm(repository.repository_id, vm_uuid)
        wanted = {point.backup_id for point in points} & set(backup_ids)
        if cascade:
            wanted = _with_dependants(wanted, layers)
        going = [point for point in points if point.backup_id in wanted]
        await self._guard.require_unlocked(repository, going)
        doomed = {layer.layer_id for layer in layers if layer.point_id in wanted}
        return DeletionPlan(
            repository,
            points=going,
            layers=[layer for layer in layers if layer.layer_id in doomed],
            merges=_merges(layers, doomed),
            holders=await self._holders(repository, layers, doomed),
        )

    async def estimate(self, plan: DeletionPlan, *, can_clone: bool) -> DeletionPlan:
        """Returns a plan with its costs; reads the manifests of the layers that are merged.

        Raises:
            LayerDamaged: A manifest is not as it was sealed.
        """
        return await asyncio.to_thread(_estimate, plan, can_clone=can_clone)

    async def _holders(
        self, repository: RepositoryRecord, layers: Sequence[LayerRecord], doomed: Collection[str]
    ) -> list[tuple[str, str]]:
        """Returns who reads through layers that are to go: by a lease, by a running backup, by a qemu process."""
        reading = _through(layers, doomed)
        points = sorted({layer.point_id for layer in reading if layer.point_id is not None})
        found = [(lease.backup_id, lease.holder) for lease in await self._catalogue.leases.living(points, utc_now())]
        for layer in reading:
            if layer.point_id is None and layer.layer_id not in doomed:
                below = next(each for each in layers if each.layer_id == layer.parent_layer_id)
                found.append((below.backup_id, layer.backup_id))
        for layer in layers:
            # A lease that ran out is not enough: whoever still has the image open must end first.
            sealed = layer.files(repository.path).sealed
            if layer.layer_id in doomed and await asyncio.to_thread(is_open_in_qemu, sealed):
                found.append((layer.backup_id, "a qemu process that has its image open"))
        return found


def _with_dependants(wanted: set[str], layers: Sequence[LayerRecord]) -> set[str]:
    """Adds the points that build on others: a point goes whole, with one of its layers all of them do."""
    while True:
        doomed = {layer.layer_id for layer in layers if layer.point_id in wanted}
        more = {layer.point_id for layer in _through(layers, doomed) if layer.point_id is not None} - wanted
        if not more:
            return wanted
        wanted = wanted | more


def _through(layers: Sequence[LayerRecord], doomed: Collection[str]) -> list[LayerRecord]:
    """Returns the layers that give bytes of some layers: these, and all that build on them."""
    reached = set(doomed)
    while more := {
        layer.layer_id for layer in layers if layer.parent_layer_id in reached and layer.layer_id not in reached
    }:
        reached |= more
    return [layer for layer in layers if layer.layer_id in reached]


def _merges(layers: Sequence[LayerRecord], doomed: Collection[str]) -> list[Merge]:
    known = {layer.layer_id: layer for layer in layers}
    found = []
    for layer in layers:
        if layer.layer_id in doomed or layer.parent_layer_id not in doomed or layer.point_id is None:
            continue
        chain = ancestry(layer, known)
        count = next((index for index, below in enumerate(chain[1:]) if below.layer_id not in doomed), len(chain) - 1)
        found.append(Merge(tuple(chain), count))
    return sorted(found, key=lambda merge: len(merge.chain))


def _tables_bytes(manifest: MergedManifest, virtual_size: int) -> int:
    """Returns what header, L1, refcounts and L2 tables of a merged image take, about."""
    covered = CLUSTER_SIZE // 8 * CLUSTER_SIZE  # one entry of 8 bytes for each cluster; a table is one cluster long
    return (3 + total(align(manifest.areas, covered, virtual_size)) // covered + 1) * CLUSTER_SIZE


def _estimate(plan: DeletionPlan, *, can_clone: bool) -> DeletionPlan:
    root = plan.repository.path
    estimates = []
    concerned = {layer.layer_id: layer for layer in plan.layers}
    for merge in plan.merges:
        concerned[merge.child.layer_id] = merge.child
        manifest = read_manifest(merge, root)
        size = merge.child.virtual_size_bytes
        every = manifest.data_bytes(CLUSTER_SIZE, size)
        if can_clone:
            copied = manifest.upper_data_bytes(CLUSTER_SIZE, size)
            # What the clone holds below a later zero stays allocated.
            lowest = merge.merged[-1].files(root).stored_bytes()
            estimates.append(Estimate(copied, max(every + _tables_bytes(manifest, size), lowest)))
        else:
            estimates.append(Estimate(every, every + _tables_bytes(manifest, size)))
    stored = sum(layer.files(root).sealed_bytes() for layer in concerned.values())
    return replace(plan, estimates=estimates, stored_bytes=stored)
