"""Compares a repository's storage with the catalogue, both ways, and reports; nothing is imported or deleted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sendense_repository import disks, durable, layout, pointfile
from sendense_repository.errors import RepositoryUnusable
from sendense_repository.locks import NamedLocks, vm_lock
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import LayerRecord, PointRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.store import Catalogue
from sendense_repository.stored import NotWhole, StoredPoint, StoredVm

Kind = Literal["missing", "damaged", "uncommitted", "unknown", "leftover", "unimportable"]

MAX_FINDINGS = 10_000
_VM_DIRECTORY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DISK_DIRECTORY = re.compile(r"disk-\d+")
_OF_LAYER = re.compile(
    r"((full|incr)-\d{8}-\d{6}\.qcow2)(\.partial|\.areas|\.journal|\.json|\.doubt|\.merged(\.journal|\.json)?)?"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference, or one file that is not as it must be; `path` is below the root."""

    kind: Kind
    path: str
    backup_id: str
    finding: str


@dataclass(slots=True)
class Report:
    """Where storage and catalogue differ.

    Attributes:
        repository: Which.
        agreed: How many points both have.
        importable: Points that only storage has, whole, by VM, oldest first.
        findings: Whatever else differs.
    """

    repository: RepositoryRecord
    agreed: int = 0
    importable: list[StoredPoint] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class Scanner:
    """Scans repositories."""

    def __init__(self, catalogue: Catalogue, registry: Registry, locks: NamedLocks, reconciler: Reconciler) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._reconciler = reconciler

    async def scan(self, id_or_name: str) -> Report:
        """Compares a repository with the catalogue.

        Raises:
            RepositoryNotFound: There is none.
            RepositoryUnusable: Its root is missing, another's or unreadable.
        """
        repository = await self._registry.use(id_or_name)
        report = Report(repository)
        on_storage = await asyncio.to_thread(_vms_on_storage, repository.path, report)
        in_catalogue = await self._catalogue.points.vms(repository.repository_id)
        for vm_uuid in sorted({*on_storage, *in_catalogue}):
            async with self._locks.hold(vm_lock(repository.repository_id, vm_uuid)):
                await self._reconciler.reconcile_vm(repository, vm_uuid)
                points = await self._catalogue.points.of_vm(repository.repository_id, vm_uuid)
                layers = await self._catalogue.layers.of_vm(repository.repository_id, vm_uuid)
                going = [point for point in await self._catalogue.points.deleting() if point.vm_uuid == vm_uuid]
                look = _Look(repository, vm_uuid, points, layers, {point.backup_id for point in going})
                await asyncio.to_thread(look.run, report)
        del report.findings[MAX_FINDINGS:]
        return report

    async def stored_points(self, id_or_name: str) -> list[StoredPoint]:
        """Returns the points that only storage has, whole, by VM, oldest first; raises as `scan`."""
        return (await self.scan(id_or_name)).importable


@dataclass(frozen=True, slots=True)
class _Look:
    """One VM's comparison."""

    repository: RepositoryRecord
    vm_uuid: str
    points: Sequence[PointRecord]
    layers: Sequence[LayerRecord]
    going: set[str]

    @property
    def _root(self) -> Path:
        return self.repository.path

    def run(self, report: Report) -> None:
        """Adds what is found to the report; blocks for the disk."""
        stored = StoredVm(self._root, self.repository.repository_id, self.vm_uuid)
        stored.read()
        wholes, broken = self._stored_points(stored)
        known = {point.backup_id: point for point in self.points}
        for path, finding in stored.damaged_sidecars.items():
            self._add(report, "damaged", path, "", finding)
        for backup_id, error in broken.items():
            kind: Kind = "damaged" if backup_id in known else "unimportable"
            self._add(report, kind, error.path, backup_id, error.finding)
        for backup_id, point in known.items():
            path = layout.point_file(self._root, self.vm_uuid, backup_id)
            if backup_id not in wholes and backup_id not in broken:
                self._add(report, "missing", path, backup_id, "the catalogue has the restore point, storage has not")
            elif backup_id in wholes and wholes[backup_id].record.digest != point.digest:
                self._add(report, "damaged", path, backup_id, "it is not the points file that was committed")
            elif backup_id in wholes:
                report.agreed += 1
        importable = [
            whole for backup_id, whole in wholes.items() if backup_id not in known | dict.fromkeys(self.going)
        ]
        report.importable += sorted(importable, key=lambda whole: whole.record.sequence)
        held = {layer.layer_id for whole in wholes.values() for layer in whole.needed}
        held |= {layer.layer_id for layer in self.layers}
        for layer in stored.layers():
            if layer.layer_id not in held:
                finding = "the sealed layer belongs to no whole restore point; it is never imported"
                self._add(report, "uncommitted", layer.files(self._root).sealed, layer.backup_id, finding)
        self._other_files(report, {layer.relative_path for layer in (*stored.layers(), *self.layers)})

    def _stored_points(self, stored: StoredVm) -> tuple[dict[str, StoredPoint], dict[str, NotWhole]]:
        wholes: dict[str, StoredPoint] = {}
        broken: dict[str, NotWhole] = {}
        for backup_id in sorted(pointfile.point_ids(self._root, self.vm_uuid)):
            try:
                wholes[backup_id] = stored.point(backup_id)
            except NotWhole as error:
                broken[backup_id] = error
        return wholes, broken

    def _other_files(self, report: Report, known: set[str]) -> None:
        """Reports files that are nobody's, and leftovers of a crash."""
        directory = self._root / self.vm_uuid
        if not directory.is_dir():
            return
        try:
            disks.read_numbers(self._root, self.vm_uuid)
        except RepositoryUnusable as error:
            self._add(report, "damaged", directory / layout.DISKS_NAME, "", error.finding)
        for path in _files_below(directory):
            match = _OF_LAYER.fullmatch(path.name)
            in_disk = path.parent.parent == directory and _DISK_DIRECTORY.fullmatch(path.parent.name)
            if path.name.startswith(durable.TEMPORARY_PREFIX):
                self._add(report, "leftover", path, "", "a crash left it; it is never read")
            elif match and in_disk:
                relative = str((path.parent / match[1]).relative_to(self._root))
                if relative not in known:
                    self._add(report, "uncommitted", path, "", "of a layer that was never sealed, or lost its sidecar")
            elif not self._is_ours(path, directory):
                self._add(report, "unknown", path, "", "not ours; it is left alone")

    def _is_ours(self, path: Path, directory: Path) -> bool:
        if path == directory / layout.DISKS_NAME:
            return True
        return path.parent == directory / layout.POINTS_DIRECTORY and path.suffix == ".json"

    def _add(self, report: Report, kind: Kind, path: Path, backup_id: str, finding: str) -> None:
        report.findings.append(Finding(kind, str(path.relative_to(self._root)), backup_id, finding))


def _vms_on_storage(root: Path, report: Report) -> list[str]:
    """Returns the VM directories of a root; whatever else is there is reported."""
    found = []
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise RepositoryUnusable(root, f"it cannot be listed: {error.strerror}") from error
    for entry in entries:
        if _VM_DIRECTORY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            found.append(entry.name)
        elif entry.name.startswith(durable.TEMPORARY_PREFIX):
            report.findings.append(Finding("leftover", entry.name, "", "a crash left it; it is never read"))
        elif entry.name not in {layout.MARKER_NAME, "lost+found"}:
            report.findings.append(Finding("unknown", entry.name, "", "not ours; it is left alone"))
    return found


def _files_below(directory: Path) -> Iterator[Path]:
    """Yields whatever is no directory; symbolic links are never followed."""
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files_below(entry)
        else:
            yield entry
