"""Puts the service's parts together; the same for the process and for tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from sendense_db.engine import Database
from sendense_repository import durable
from sendense_repository.audit import AuditDesk
from sendense_repository.chain import ChainViewer
from sendense_repository.creation import LayerMaker
from sendense_repository.deletion import Deleter
from sendense_repository.errors import RepositoryUnusable
from sendense_repository.journals import OpenJournals
from sendense_repository.layer import LayerDesk
from sendense_repository.locks import NamedLocks
from sendense_repository.operations import Operations
from sendense_repository.point import PointDesk
from sendense_repository.reconcile import Reconciler
from sendense_repository.registry import Registry
from sendense_repository.sealing import Sealer
from sendense_repository.steps import StepObserver, log_step
from sendense_repository.store import Catalogue

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the servicers call."""

    catalogue: Catalogue
    registry: Registry
    locks: NamedLocks
    reconciler: Reconciler
    journals: OpenJournals
    maker: LayerMaker
    layers: LayerDesk
    sealer: Sealer
    points: PointDesk
    chains: ChainViewer
    deleter: Deleter
    operations: Operations
    audits: AuditDesk
    work_dir: Path

    async def start(self, default_root: Path) -> None:
        """Registers the default repository and finishes what a crash interrupted; a repository that is not there waits.

        Raises:
            RepositoryUnusable: The default repository is not registered and its directory cannot keep backups.
        """
        await asyncio.to_thread(_make_empty, self.work_dir)
        await self.registry.ensure_default(default_root)
        for record in await self.catalogue.repositories.all():
            try:
                await self.reconciler.reconcile_all(await self.registry.use(record.repository_id))
            except RepositoryUnusable as error:
                log.warning("a repository cannot be used now", name=record.name, error=str(error))

    async def check(self) -> None:
        """Raises when the catalogue does not answer, or the default repository's root is not there."""
        await self.catalogue.check()
        await self.registry.check_default()


def build_parts(
    database: Database,
    reserve_bytes: int,
    work_dir: Path,
    *,
    sync: Callable[[Path], None] = durable.sync_file,
    observe: StepObserver = log_step,
) -> Parts:
    """Builds the parts of the service.

    Args:
        database: The catalogue's database, its tables made.
        reserve_bytes: Room that is never used.
        work_dir: Folder of our own with a short path, for the sockets of merges; emptied by `Parts.start`.
        sync: Makes an image durable when it is sealed.
        observe: Told of each step that changes storage.
    """
    catalogue = Catalogue(database)
    registry = Registry(catalogue, reserve_bytes)
    locks = NamedLocks()
    journals = OpenJournals()
    reconciler = Reconciler(catalogue, observe)
    layers = LayerDesk(catalogue, registry, locks, journals, reconciler)
    deleter = Deleter(catalogue, registry, locks, reconciler, work_dir, sync=sync, observe=observe)
    return Parts(
        catalogue=catalogue,
        registry=registry,
        locks=locks,
        reconciler=reconciler,
        journals=journals,
        maker=LayerMaker(catalogue, registry, locks, reconciler),
        layers=layers,
        sealer=Sealer(catalogue, registry, locks, journals, layers, sync=sync, observe=observe),
        points=PointDesk(catalogue, registry, locks, reconciler, observe),
        chains=ChainViewer(catalogue, registry),
        deleter=deleter,
        operations=Operations(catalogue, deleter),
        audits=AuditDesk(catalogue, layers, locks),
        work_dir=work_dir,
    )


def _make_empty(work_dir: Path) -> None:
    """Makes the folder for sockets of merges; what an earlier run left in it goes."""
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(mode=0o700, parents=True)
