"""Deletes restore points: the layers that kept points build on are merged upwards, unless those points go too.

What always holds: until the deletion's intent is recorded nothing is changed, and from then on it is always finished,
also after a crash. Whoever reads a point that is concerned is waited for, or the deletion is refused, naming them.
Deletions of one VM take turns; a backup of it may run meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from sendense_blockio.engine import CopyProgress
from sendense_blockio.errors import CopyCancelledError
from sendense_repository import durable
from sendense_repository.clone import can_clone
from sendense_repository.deletion_plan import DeletionPlan, DeletionPlanner
from sendense_repository.errors import RepositoryUnusable, StaleAttempt, is_no_space
from sendense_repository.locks import NamedLocks, maintenance_lock, vm_lock
from sendense_repository.merging import Merge, MergeBuilder, remove_merge
from sendense_repository.reconcile import Reconciler
from sendense_repository.records import Holder, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.removal import remove_points
from sendense_repository.steps import StepObserver, log_step
from sendense_repository.store import Catalogue

log = structlog.get_logger()

Answer = TypeVar("Answer")

_LOOK_SECONDS = 0.5
"""How often holders are looked at while they are waited for."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was, or would be, removed.

    Attributes:
        backup_ids: Points, newest first.
        freed_bytes: Bytes that come back.
    """

    backup_ids: Sequence[str]
    freed_bytes: int


@dataclass(slots=True)
class Course:
    """How a deletion goes; read by whoever watches it, from any thread.

    Attributes:
        holder: For whom it is done; a newer attempt takes its place.
        plan: What is done, once it is known.
        copied: Counters of the merges that are done, and of the one that runs.
        waiting_for: Who is waited for now.
        cancel: Set to end it while that changes nothing.
    """

    holder: Holder
    plan: DeletionPlan | None = None
    copied: list[CopyProgress] = field(default_factory=list)
    waiting_for: Sequence[str] = ()
    cancel: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked for."""

    repository: RepositoryRecord
    vm_uuid: str
    backup_ids: frozenset[str]
    cascade: bool
    wait_seconds: float


class Deleter:
    """Deletes restore points."""

    def __init__(
        self,
        catalogue: Catalogue,
        registry: Registry,
        locks: NamedLocks,
        reconciler: Reconciler,
        work_dir: Path,
        *,
        sync: Callable[[Path], None] = durable.sync_file,
        observe: StepObserver = log_step,
    ) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._locks = locks
        self._reconciler = reconciler
        self._observe = observe
        self._planner = DeletionPlanner(catalogue)
        self._builder = MergeBuilder(work_dir, sync, observe)
        self._clones: dict[str, bool] = {}

    async def plan(self, backup_ids: Collection[str], *, cascade: bool) -> DeletionPlan:
        """Returns exactly what `delete` would do, with its costs; changes nothing.

        Raises:
            PointNotFound: One of the points never was.
            InvalidValue: They are of several VMs or repositories.
        """
        repository_id, vm_uuid = await self._planner.place(backup_ids)
        repository = await self._registry.use(repository_id)
        async with self._locks.hold(vm_lock(repository_id, vm_uuid)):
            await self._reconciler.reconcile_vm(repository, vm_uuid)
            plan = await self._planner.plan(repository, vm_uuid, backup_ids, cascade=cascade)
        return await self._planner.estimate(plan, can_clone=await self._can_clone(repository))

    async def require_room(self, plan: DeletionPlan) -> None:
        """Raises NoRoom unless the merges of a plan fit beside the reserve and what running jobs may still write."""
        if plan.merges:
            await self._registry.require_room(plan.repository, plan.needed_bytes)

    async def delete(
        self,
        holder: Holder,
        backup_ids: Collection[str],
        *,
        cascade: bool,
        wait_seconds: float = 0.0,
        course: Course | None = None,
    ) -> Deletion:
        """Deletes points of one VM; with `cascade` those that build on them too, else those are kept whole by merging.

        Points that were deleted before are no error. It is ended by `course.cancel`, not by cancelling the task.

        Args:
            holder: Who asks.
            backup_ids: The points.
            cascade: Delete dependants, merge nothing.
            wait_seconds: How long to wait for whoever reads them, each time before and after the merging.
            course: Kept up to date for whoever watches.

        Raises:
            PointNotFound: One of the points never was.
            PointLeased: Somebody reads a point that is concerned.
            NoRoom: The merges do not fit.
            LayerDamaged: A layer that is to be merged is not what was backed up.
            MergeFailed: A merge did not succeed; nothing was changed.
            CopyCancelledError: `course.cancel` was set; nothing was changed.
        """
        course = course if course is not None else Course(holder)
        await self._admit(course)
        repository_id, vm_uuid = await self._planner.place(backup_ids)
        repository = await self._registry.use(repository_id)
        wanted = _Wanted(repository, vm_uuid, frozenset(backup_ids), cascade, wait_seconds)
        built: dict[Merge, None] = {}
        async with self._locks.hold(maintenance_lock(repository_id, vm_uuid)):
            try:
                while True:
                    plan = await self._when_free(wanted, course, self._return)
                    course.plan = plan = await self._planner.estimate(plan, can_clone=await self._can_clone(repository))
                    missing = [merge for merge in plan.merges if merge not in built]
                    if missing:
                        await self.require_room(plan)
                    for merge in missing:
                        await self._build(merge, repository, course)
                        built[merge] = None
                    # A backup may have been committed meanwhile: then what it built on is merged into it as well.
                    done = await self._when_free(wanted, course, lambda now: self._remove(now, built))
                    if done is not None:
                        log.info("restore points deleted", backup_ids=done.backup_ids, freed_bytes=done.freed_bytes)
                        return done
            finally:
                await self._clean(wanted, built)

    async def _admit(self, course: Course) -> None:
        """Admits the holder as it is now: a newer attempt may take the deletion over at any moment.

        Raises:
            StaleAttempt: A newer attempt of the job was seen that has not taken it over.
        """
        while True:
            holder = course.holder
            try:
                return await self._catalogue.fences.admit(holder)
            except StaleAttempt:
                if course.holder == holder:
                    raise

    async def _return(self, plan: DeletionPlan) -> DeletionPlan:
        return plan

    async def _when_free(
        self, wanted: _Wanted, course: Course, act: Callable[[DeletionPlan], Awaitable[Answer]]
    ) -> Answer:
        """Does something under the VM's lock when nobody reads what is concerned; waits for that, or refuses."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wanted.wait_seconds
        while True:
            async with self._locks.hold(vm_lock(wanted.repository.repository_id, wanted.vm_uuid)):
                await self._admit(course)
                repository = await self._registry.use(wanted.repository.repository_id)
                await self._reconciler.reconcile_vm(repository, wanted.vm_uuid)
                plan = await self._planner.plan(repository, wanted.vm_uuid, wanted.backup_ids, cascade=wanted.cascade)
                if not plan.holders:
                    course.waiting_for = ()
                    return await act(plan)
            course.waiting_for = tuple(dict.fromkeys(holder for _, holder in plan.holders))
            if course.cancel.is_set():
                raise CopyCancelledError("the deletion was cancelled")
            if loop.time() >= deadline:
                plan.require_free()
            await asyncio.sleep(min(_LOOK_SECONDS, max(0.0, deadline - loop.time())))

    async def _build(self, merge: Merge, repository: RepositoryRecord, course: Course) -> None:
        progress = CopyProgress()
        course.copied.append(progress)
        try:
            await self._builder.build(merge, repository.path, progress, course.cancel)
        except BaseException as error:
            await asyncio.to_thread(remove_merge, merge.child.files(repository.path))
            if is_no_space(error):
                raise self._registry.no_room(repository, course.plan.needed_bytes if course.plan else 0) from error
            raise

    async def _remove(self, plan: DeletionPlan, built: Collection[Merge]) -> Deletion | None:
        """Removes what a plan says, when all its merges are made; None when one is missing."""
        if any(merge not in built for merge in plan.merges):
            return None
        if not plan.points:
            return Deletion((), 0)
        await self._catalogue.points.begin_delete(plan.backup_ids)
        self._observe("delete-intent")
        try:
            freed = await remove_points(self._catalogue, plan.repository.path, plan.points, self._observe)
        except OSError as error:
            if is_no_space(error):  # it is finished when there is room, by whatever touches the VM next
                raise self._registry.no_room(plan.repository, 0) from error
            raise
        return Deletion(plan.backup_ids, freed)

    async def _clean(self, wanted: _Wanted, built: Collection[Merge]) -> None:
        """Removes merges that were made for nothing; those of a deletion that has begun stay until it is finished."""
        repository, vm_uuid = wanted.repository, wanted.vm_uuid
        async with self._locks.hold(vm_lock(repository.repository_id, vm_uuid)):
            begun = [point for point in await self._catalogue.points.deleting() if point.vm_uuid == vm_uuid]
            for merge in built if not begun else ():
                await asyncio.to_thread(remove_merge, merge.child.files(repository.path))

    async def _can_clone(self, repository: RepositoryRecord) -> bool:
        known = self._clones.get(repository.repository_id)
        if known is None:
            try:
                known = await asyncio.to_thread(can_clone, repository.path)
            except OSError as error:
                if is_no_space(error):
                    return False
                raise RepositoryUnusable(repository.path, f"{error.strerror or error}") from error
            self._clones[repository.repository_id] = known
        return known
