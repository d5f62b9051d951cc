"""Deletions and consolidations that go on by themselves: started or joined by a job id, watched, stopped at the end.

Operations are kept in memory: what they did lies in storage and catalogue, so one that a crash ended is simply started
again under the same id. The last ones that ended are kept to be asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from sendense_blockio.errors import CopyCancelledError
from sendense_db.columns import utc_now
from sendense_repository.deletion import Course, Deleter, Deletion
from sendense_repository.errors import (
    InvalidValue,
    OperationConflict,
    OperationNotFound,
    OperationStopped,
    PointNotFound,
)
from sendense_repository.records import Holder
from sendense_repository.store import Catalogue
from sendense_rpc.errors import Kind, SendenseError

log = structlog.get_logger()

OperationKind = Literal["deletion", "consolidation"]
OperationState = Literal["running", "waiting", "done", "failed"]

_MOST_ENDED = 1000
_WATCH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """What an operation does; equal requests may join."""

    kind: OperationKind
    backup_ids: frozenset[str]
    cascade: bool


@dataclass(slots=True)
class Operation:
    """An operation; `course` says how it goes.

    Attributes:
        done: What it did, once it ended well.
        error: Why it failed.
        ended: Set when it ended, either way.
    """

    request: Request
    course: Course
    started_at: datetime
    updated_at: datetime
    done: Deletion | None = None
    error: SendenseError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def operation_id(self) -> str:
        """The job id that it was started under."""
        return self.course.holder.job_id

    @property
    def state(self) -> OperationState:
        """How it is now."""
        if self.ended.is_set():
            return "failed" if self.error is not None else "done"
        return "waiting" if self.course.waiting_for else "running"

    @property
    def bytes_total(self) -> int:
        """Bytes that are to be copied."""
        plan = self.course.plan
        return sum(each.copied_bytes for each in plan.estimates) if plan is not None else 0

    @property
    def bytes_done(self) -> int:
        """Bytes that were copied; never more than are to be."""
        return min(self.bytes_total, sum(progress.bytes_done for progress in self.course.copied))


class Operations:
    """Runs deletions in the background."""

    def __init__(self, catalogue: Catalogue, deleter: Deleter) -> None:
        self._catalogue = catalogue
        self._deleter = deleter
        self._operations: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()

    async def delete(
        self, holder: Holder, backup_ids: frozenset[str], *, cascade: bool, wait_seconds: int
    ) -> Operation:
        """Starts or joins a deletion.

        Raises:
            PointNotFound: One of the points never was.
            PointLeased: Somebody reads a point that is concerned, and nobody is to be waited for.
            NoRoom: It does not fit.
            OperationConflict: The id is that of a running operation that does something else.
        """
        return await self._start(holder, Request("deletion", backup_ids, cascade), wait_seconds)

    async def consolidate(
        self, holder: Holder, first_backup_id: str, last_backup_id: str, *, wait_seconds: int
    ) -> Operation:
        """Starts or joins a consolidation: all points from the first to before the last are merged upwards.

        Raises:
            PointNotFound: The last one is not there, or the first one never was.
            InvalidValue: They are of several VMs, or the first does not come before the last.
        """
        running = self._operations.get(holder.job_id)
        if running is not None and not running.ended.is_set() and running.request.kind == "consolidation":
            return await self._start(holder, running.request, wait_seconds)
        points = self._catalogue.points
        first, last = await points.find_any(first_backup_id), await points.find(last_backup_id)
        if first is None or last is None:
            raise PointNotFound(first_backup_id if first is None else last_backup_id)
        if (first.repository_id, first.vm_uuid) != (last.repository_id, last.vm_uuid):
            raise InvalidValue("last_backup_id", "the points must be of one VM in one repository")
        if first.sequence >= last.sequence:
            raise InvalidValue("first_backup_id", f"{first_backup_id} does not come before {last_backup_id}")
        run = {
            point.backup_id
            for point in await points.of_vm(first.repository_id, first.vm_uuid)
            if first.sequence <= point.sequence < last.sequence
        }
        request = Request("consolidation", frozenset(run | {first_backup_id}), cascade=False)
        return await self._start(holder, request, wait_seconds)

    async def finished(self, operation: Operation) -> Deletion:
        """Waits for an operation and returns what it did; raises what it failed with."""
        await operation.ended.wait()
        if operation.done is None:
            raise operation.error or OperationStopped(operation.operation_id)
        return operation.done

    def get(self, operation_id: str) -> Operation:
        """Returns an operation.

        Raises:
            OperationNotFound: There is none of that id since the service started.
        """
        operation = self._operations.get(operation_id)
        if operation is None:
            raise OperationNotFound(operation_id)
        return operation

    async def watch(self, operation_id: str) -> AsyncIterator[Operation]:
        """Yields an operation at once, whenever it moved, and last when it has ended."""
        operation = self.get(operation_id)
        seen: object = None
        while True:
            # Looked at first: it may end while the watcher takes what is yielded, which then is not its end.
            ended = operation.ended.is_set()
            now = (operation.state, operation.bytes_done, tuple(operation.course.waiting_for), operation.course.plan)
            if now != seen:
                seen = now
                yield operation
            if ended:
                return
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await operation.ended.wait()
            except TimeoutError:
                continue

    async def _start(self, holder: Holder, request: Request, wait_seconds: int) -> Operation:
        async with self._starting:
            known = self._operations.get(holder.job_id)
            if known is not None and not known.ended.is_set():
                if known.request.backup_ids != request.backup_ids or known.request.cascade != request.cascade:
                    raise OperationConflict(holder.job_id)
                if holder.attempt > known.course.holder.attempt:
                    # Before it is admitted: from then on the operation must not be taken for an older attempt's.
                    known.course.holder = holder
                await self._catalogue.fences.admit(holder)
                return known
            await self._catalogue.fences.admit(holder)
            # What can be known at once is said at once, not by an operation that failed.
            plan = await self._deleter.plan(request.backup_ids, cascade=request.cascade)
            if not wait_seconds:
                plan.require_free()
            await self._deleter.require_room(plan)
            now = utc_now()
            operation = Operation(request, Course(holder, plan), now, now)
            self._operations.pop(holder.job_id, None)
            self._operations[holder.job_id] = operation
            self._forget_oldest()
            task = asyncio.create_task(self._run(operation, wait_seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return operation

    async def _run(self, operation: Operation, wait_seconds: int) -> None:
        request, course = operation.request, operation.course
        try:
            operation.done = await self._deleter.delete(
                course.holder, request.backup_ids, cascade=request.cascade, wait_seconds=wait_seconds, course=course
            )
        except SendenseError as error:
            operation.error = error
            log.warning("an operation failed", operation_id=operation.operation_id, error=str(error))
        except CopyCancelledError:
            operation.error = OperationStopped(operation.operation_id)
        except Exception:
            log.exception("an operation failed", operation_id=operation.operation_id)
            operation.error = SendenseError(
                "the operation failed; the log of the repository service says why",
                kind=Kind.INTERNAL,
                reason="INTERNAL",
                help="Look into the log, then try again.",
            )
        finally:
            course.waiting_for = ()
            operation.updated_at = utc_now()
            operation.ended.set()

    def _forget_oldest(self) -> None:
        ended = [each.operation_id for each in self._operations.values() if each.ended.is_set()]
        for operation_id in ended[: max(0, len(ended) - _MOST_ENDED)]:
            del self._operations[operation_id]

    async def stop(self) -> None:
        """Ends what runs, as soon as that leaves everything whole, and waits for it."""
        for operation in self._operations.values():
            operation.course.cancel.set()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
