"""Operations on restore points: taking new ones, and what their workflows write.

Each write of a workflow names the attempt: one of an older attempt raises `Superseded` and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.errors import JobNotFound, Superseded
from sendense_backup.model import ACTIVE, COMPLETED, FINAL, PENDING, RUNNING, Operation
from sendense_backup.store.one_job import refuse_second_job
from sendense_backup.store.rows import to_operation
from sendense_backup.store.tables import is_active, log, operations
from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_naming.identifiers import job_id

_RACES = 5
"""How often an admission is tried when another replica inserts at the same moment."""


@dataclass(frozen=True, slots=True)
class NewOperation:
    """What an operation is made from.

    Attributes:
        scope: What it is about, for its id: the VM's name, or a word such as `all`.
    """

    kind: str
    scope: str
    vm_context_id: str = ""
    vm_name: str = ""
    backup_id: str = ""
    repository_id: str = ""
    policy_id: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""
    priority: int = 0
    retry_of: str = ""


class Operations:
    """The rows of all operations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known_request(self, request_id: str) -> Operation | None:
        """Returns the operation that a request with this id started."""
        if not request_id:
            return None
        async with self._database.read() as connection:
            return await _by_request(connection, request_id)

    async def admit(self, new: NewOperation, moment: datetime | None = None) -> tuple[Operation, bool]:
        """Records a new operation as `pending`.

        Returns:
            The operation, and whether it is new: a repeated `request_id` gives the one that it started.

        Raises:
            BackupRunning: The VM has a job that has not ended.
        """
        for race in range(_RACES):
            try:
                async with self._database.begin() as connection:
                    return await _admit(connection, new, moment or utc_now())
            except IntegrityError:
                if race == _RACES - 1:
                    raise
        raise AssertionError("unreachable")

    async def read(self, operation_id: str) -> Operation:
        """Returns an operation.

        Raises:
            JobNotFound: There is none of this id.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(select(operations).where(operations.c.id == operation_id))).first()
        if row is None:
            raise JobNotFound(operation_id)
        return to_operation(row)

    async def of_policies(self, policy_ids: Collection[str], since: datetime) -> dict[str, bool]:
        """Returns what policies' runs started since a moment: by the request's id, whether it has ended."""
        query = select(operations.c.request_id, operations.c.status).where(
            operations.c.policy_id.in_(policy_ids), operations.c.created_at >= since
        )
        async with self._database.read() as connection:
            return {row.request_id: row.status in FINAL for row in await connection.execute(query) if row.request_id}

    async def active(self) -> list[Operation]:
        """Returns the operations that have not ended, oldest first."""
        query = select(operations).where(is_active(operations)).order_by(operations.c.created_at)
        async with self._database.read() as connection:
            return [to_operation(row) for row in await connection.execute(query)]

    async def completed_since(self, kind: str, vm_context_id: str, since: datetime) -> bool:
        """Tells whether a VM had an operation of this kind that completed since a moment."""
        query = select(operations.c.id).where(
            operations.c.vm_context_id == vm_context_id,
            operations.c.kind == kind,
            operations.c.status == COMPLETED,
            operations.c.created_at >= since,
        )
        async with self._database.read() as connection:
            return await connection.scalar(query.limit(1)) is not None

    async def claim(self, operation_id: str, expected: int | None = None) -> int | None:
        """Makes a new attempt of an operation that has not ended; None when it has.

        Raises:
            Superseded: The current attempt is another one than expected.
        """
        async with self._database.begin() as connection:
            row = (
                await connection.execute(
                    select(operations.c.attempt, operations.c.status)
                    .where(operations.c.id == operation_id)
                    .with_for_update()
                )
            ).one()
            if expected is not None and row.attempt != expected:
                raise Superseded(operation_id, expected)
            if row.status not in ACTIVE:
                return None
            await connection.execute(
                update(operations).where(operations.c.id == operation_id).values(attempt=row.attempt + 1)
            )
        return int(row.attempt) + 1

    async def enter(self, operation_id: str, attempt: int, phase: str) -> bool:
        """Records the step that it is at; returns whether somebody asked it to stop."""
        async with self._database.begin() as connection:
            await _mine(connection, operation_id, attempt, phase=phase)
            wanted = await connection.scalar(
                select(operations.c.cancel_requested).where(operations.c.id == operation_id)
            )
        return bool(wanted)

    async def start(self, operation_id: str, attempt: int) -> None:
        """Marks it as running; when it began is kept from its first attempt."""
        async with self._database.begin() as connection:
            began = func.coalesce(operations.c.started_at, utc_now())
            await _mine(connection, operation_id, attempt, status=RUNNING, started_at=began)

    async def progress(self, operation_id: str, attempt: int, done_bytes: int, total_bytes: int, rate: int) -> None:
        """Records how far it is."""
        async with self._database.begin() as connection:
            values = {"done_bytes": done_bytes, "total_bytes": total_bytes, "rate_bytes_per_second": rate}
            await _mine(connection, operation_id, attempt, **values)

    async def set_result(self, operation_id: str, attempt: int, result: dict[str, Any]) -> None:
        """Records what was done so far."""
        async with self._database.begin() as connection:
            await _mine(connection, operation_id, attempt, result_json=json.dumps(result, sort_keys=True))

    async def end(self, operation_id: str, attempt: int, status: str, reason: str = "", message: str = "") -> None:
        """Gives it its final status, once."""
        async with self._database.begin() as connection:
            now = await connection.scalar(select(operations.c.status).where(operations.c.id == operation_id))
            if now not in ACTIVE:
                raise Superseded(operation_id, attempt)
            await _mine(
                connection,
                operation_id,
                attempt,
                status=status,
                phase="",
                rate_bytes_per_second=0,
                completed_at=utc_now(),
                error_reason=reason or None,
                error_message=message or None,
            )

    async def request_cancel(self, operation_id: str) -> bool:
        """Marks it as to be cancelled; False when it has ended."""
        async with self._database.begin() as connection:
            changed = await connection.execute(
                update(operations)
                .where(operations.c.id == operation_id, operations.c.status.in_(ACTIVE))
                .values(cancel_requested=True)
            )
        return changed.rowcount > 0

    async def forget_ended(self, kind: str, before: datetime) -> int:
        """Deletes ended operations of a kind, and their logs; returns how many went."""
        old = select(operations.c.id).where(
            operations.c.kind == kind, operations.c.status.in_(FINAL), operations.c.completed_at < before
        )
        async with self._database.begin() as connection:
            ids = [str(each) for each in await connection.scalars(old.limit(500))]
            await connection.execute(log.delete().where(log.c.operation_id.in_(ids)))
            await connection.execute(operations.delete().where(operations.c.id.in_(ids)))
        return len(ids)


async def _admit(connection: AsyncConnection, new: NewOperation, moment: datetime) -> tuple[Operation, bool]:
    if new.request_id:
        known = await _by_request(connection, new.request_id)
        if known is not None:
            return known, False
    if new.vm_context_id:
        await refuse_second_job(connection, new.vm_context_id, new.vm_name)
    suffix = 0
    while True:
        identifier = job_id(new.kind, new.scope, moment, suffix)
        if await connection.scalar(select(operations.c.id).where(operations.c.id == identifier)) is None:
            break
        suffix = max(2, suffix + 1)
    made = await connection.execute(
        insert(operations)
        .values(
            id=identifier,
            kind=new.kind,
            status=PENDING,
            vm_context_id=new.vm_context_id or None,
            vm_name=new.vm_name,
            backup_id=new.backup_id or None,
            repository_id=new.repository_id,
            policy_id=new.policy_id or None,
            arguments_json=json.dumps(new.arguments, sort_keys=True),
            request_id=new.request_id or None,
            priority=new.priority,
            retry_of=new.retry_of or None,
            created_at=moment,
        )
        .returning(operations)
    )
    return to_operation(made.one()), True


async def _by_request(connection: AsyncConnection, request_id: str) -> Operation | None:
    row = (await connection.execute(select(operations).where(operations.c.request_id == request_id))).first()
    return None if row is None else to_operation(row)


async def _mine(connection: AsyncConnection, operation_id: str, attempt: int, **values: Any) -> None:
    changed = await connection.execute(
        update(operations)
        .where(operations.c.id == operation_id, operations.c.attempt == attempt)
        .values(attempt=attempt, **values)
    )
    if changed.rowcount == 0:
        raise Superseded(operation_id, attempt)
