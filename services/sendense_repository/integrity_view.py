"""Answers what is known of a restore point's or layer's soundness, from the catalogue alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sendense_db.columns import utc_now
from sendense_repository.errors import LayerDamaged
from sendense_repository.integrity import Check, Damage, Integrity, judge
from sendense_repository.parentage import ancestry
from sendense_repository.records import LayerRecord, PointRecord
from sendense_repository.store import Catalogue


class IntegrityView:
    """Joins checks with the layers that points need."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def of_point(self, point: PointRecord) -> Integrity:
        """Returns what is known of a committed point."""
        layers = await self._catalogue.layers.of_vm(point.repository_id, point.vm_uuid)
        needed = needed_digests(point, layers)
        known = judge(needed, await self._catalogue.checks.of(list(needed)))
        doubts = await self.suspicions_of([layer for layer in layers if layer.point_id == point.backup_id])
        return dataclasses.replace(known, suspicion=next(iter(doubts.values()), ""))

    async def of_backup(self, backup_id: str) -> Integrity | None:
        """Returns what is known of a point, None when it was deleted."""
        point = await self._catalogue.points.find(backup_id)
        return await self.of_point(point) if point is not None else None

    async def of_points(self, points: Sequence[PointRecord]) -> dict[str, Integrity]:
        """Returns what is known of points of one VM in one repository, by backup id."""
        if not points:
            return {}
        layers = await self._catalogue.layers.of_vm(points[0].repository_id, points[0].vm_uuid)
        subjects = [*(layer.layer_id for layer in layers), *(point.backup_id for point in points)]
        checks = await self._catalogue.checks.of(subjects)
        doubts = await self.suspicions_of(layers)
        of_point = {layer.point_id: doubts[layer.layer_id] for layer in layers if layer.layer_id in doubts}
        return {
            point.backup_id: dataclasses.replace(
                judge(needed_digests(point, layers), checks), suspicion=of_point.get(point.backup_id, "")
            )
            for point in points
        }

    async def damage_of(self, layers: Sequence[LayerRecord]) -> dict[str, str]:
        """Returns in words what is wrong with layers, or with one below them; sound and unknown ones are missing."""
        found: dict[str, str] = {}
        for repository_id, vm_uuid in {(layer.repository_id, layer.vm_uuid) for layer in layers}:
            of_vm = await self._catalogue.layers.of_vm(repository_id, vm_uuid)
            checks = await self._catalogue.checks.of([layer.layer_id for layer in of_vm])
            found |= layer_damages(of_vm, checks)
        return {layer.layer_id: found[layer.layer_id] for layer in layers if layer.layer_id in found}

    async def verified_at(self, layers: Sequence[LayerRecord]) -> dict[str, datetime]:
        """Returns when layers were last read back as they are now and found sound; others are missing."""
        digests = {layer.layer_id: layer.digest for layer in layers}
        checks = await self._catalogue.checks.of(list(digests))
        return {
            check.subject_id: check.checked_at
            for check in checks
            if not check.damages and check.digest == digests[check.subject_id]
        }

    async def suspicions_of(self, layers: Sequence[LayerRecord]) -> dict[str, str]:
        """Returns why layers' content may be wrong although their bytes are as written; most are missing."""
        return await self._catalogue.suspicions.of([layer.layer_id for layer in layers])

    async def require_undamaged(self, layer: LayerRecord) -> None:
        """Raises LayerDamaged when a check found the layer, or one below it, damaged."""
        damages = await self.damage_of([layer])
        if layer.layer_id in damages:
            raise LayerDamaged(layer.layer_id, damages[layer.layer_id])

    async def note_damage(self, layer: LayerRecord, finding: str) -> None:
        """Keeps that a layer was found damaged in passing; verifying it tells the ranges."""
        whole = Damage(
            backup_id=layer.backup_id,
            layer_id=layer.layer_id,
            disk_id=layer.disk_id,
            part="image",
            file=layer.relative_path,
            file_offset=-1,
            file_length=0,
            offset=0,
            length=layer.virtual_size_bytes,
            finding=finding,
        )
        await self._catalogue.checks.put(Check(layer.layer_id, layer.repository_id, layer.digest, utc_now(), [whole]))


def needed_digests(point: PointRecord, layers: Iterable[LayerRecord]) -> dict[str, str]:
    """Returns the digest of everything that a point needs: its file, its layers and those below them.

    A layer that the catalogue lacks has no digest that any check could have.
    """
    known = {layer.layer_id: layer for layer in layers}
    needed = {point.backup_id: point.digest}
    for layer in known.values():
        if layer.point_id == point.backup_id:
            try:
                needed |= {each.layer_id: each.digest for each in ancestry(layer, known)}
            except LayerDamaged:
                needed[f"missing below {layer.layer_id}"] = ""
    return needed


def layer_damages(layers: Iterable[LayerRecord], checks: Iterable[Check]) -> Mapping[str, str]:
    """Returns what is wrong with each damaged layer, and with each that builds on one."""
    known = {layer.layer_id: layer for layer in layers}
    own = {
        check.subject_id: str(check.damages[0])
        for check in checks
        if check.damages and check.subject_id in known and known[check.subject_id].digest == check.digest
    }
    found: dict[str, str] = {}
    for layer in known.values():
        try:
            below = ancestry(layer, known)
        except LayerDamaged as error:
            found[layer.layer_id] = error.finding
            continue
        damaged = next((each for each in below if each.layer_id in own), None)
        if damaged is not None:
            found[layer.layer_id] = own[damaged.layer_id]
    return found
