"""Takes new jobs: one transaction decides about repeated requests, the one job per VM, and the id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.model import PENDING, Job, Repository, VmRef
from sendense_backup.store.imports import UNKNOWN_VCENTER
from sendense_backup.store.one_job import refuse_second_job
from sendense_backup.store.rows import SELECT_JOBS, to_job
from sendense_backup.store.tables import contexts, jobs
from sendense_db.columns import utc_now
from sendense_db.engine import Database
from sendense_naming.identifiers import backup_id, vm_context_id

_RACES = 5
"""How often an admission is tried when another replica inserts at the same moment."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job is made from."""

    vm_name: str
    ref: VmRef
    agent_id: str
    requested_type: str
    repository: Repository
    quiesce: bool
    request_id: str = ""
    priority: int = 0
    not_before: datetime | None = None
    datastores: tuple[str, ...] = ()
    policy_id: str = ""
    policy_run_id: str = ""
    retry_of: str = ""
    exclude_disks: tuple[str, ...] = ()


class Admission:
    """Takes new jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known_request(self, request_id: str) -> Job | None:
        """Returns the job that a request with this id started."""
        if not request_id:
            return None
        async with self._database.read() as connection:
            return await _by_request(connection, request_id)

    async def admit(self, new: NewJob, moment: datetime | None = None) -> tuple[Job, bool]:
        """Records a new job as `pending`.

        Args:
            new: The job.
            moment: Now, unless a test says otherwise.

        Returns:
            The job, and whether it is new: a repeated `request_id` gives the job that it started.

        Raises:
            BackupRunning: The VM has a job that has not ended.
        """
        for race in range(_RACES):
            try:
                async with self._database.begin() as connection:
                    return await self._admit(connection, new, moment or utc_now())
            except IntegrityError:
                # Another replica took the id, the VM or the request between our look and our insert: look again.
                if race == _RACES - 1:
                    raise
        raise AssertionError("unreachable")

    async def _admit(self, connection: AsyncConnection, new: NewJob, moment: datetime) -> tuple[Job, bool]:
        if new.request_id:
            known = await _by_request(connection, new.request_id)
            if known is not None:
                return known, False
        context_id = await self._context(connection, new, moment)
        await refuse_second_job(connection, context_id, new.vm_name)
        identifier = await self._free_id(connection, new.vm_name, moment)
        await connection.execute(
            insert(jobs).values(
                id=identifier,
                vm_context_id=context_id,
                vm_name=new.vm_name,
                backup_type=new.requested_type,
                requested_type=new.requested_type,
                status=PENDING,
                repository_id=new.repository.repository_id,
                repository_name=new.repository.name,
                repository_type=new.repository.repository_type,
                repository_path=f"{new.repository.path}/{new.ref.vm_uuid.lower()}",
                agent_id=new.agent_id,
                request_id=new.request_id or None,
                quiesce=new.quiesce,
                created_at=moment,
                priority=new.priority,
                not_before=new.not_before,
                datastores_json=json.dumps(sorted(new.datastores)),
                policy_id=new.policy_id or None,
                policy_run_id=new.policy_run_id or None,
                retry_of=new.retry_of or None,
                exclude_disks_json=json.dumps(list(new.exclude_disks)),
            )
        )
        row = (await connection.execute(SELECT_JOBS.where(jobs.c.id == identifier))).one()
        return to_job(row), True

    async def _context(self, connection: AsyncConnection, new: NewJob, moment: datetime) -> str:
        mine = (contexts.c.vcenter_uuid == new.ref.vcenter_uuid) & (contexts.c.vm_uuid == new.ref.vm_uuid)
        found = await connection.scalar(select(contexts.c.context_id).where(mine))
        if found is None:
            # An imported VM, whose vCenter storage did not say, is this one's from now on.
            imported = (contexts.c.vcenter_uuid == UNKNOWN_VCENTER) & (contexts.c.vm_uuid == new.ref.vm_uuid.lower())
            await connection.execute(
                update(contexts).where(imported).values(vcenter_uuid=new.ref.vcenter_uuid, vm_uuid=new.ref.vm_uuid)
            )
            found = await connection.scalar(select(contexts.c.context_id).where(mine))
        if found is not None:
            await connection.execute(
                update(contexts)
                .where(mine)
                .values(vm_name=new.vm_name, agent_id=new.agent_id, updated_at=moment, deleted_at=None)
            )
            return str(found)
        suffix = 0
        while True:
            identifier = vm_context_id(new.vm_name, moment, suffix)
            taken = await connection.scalar(select(contexts.c.context_id).where(contexts.c.context_id == identifier))
            if taken is None:
                break
            suffix = max(2, suffix + 1)
        await connection.execute(
            insert(contexts).values(
                context_id=identifier,
                vm_name=new.vm_name,
                vm_uuid=new.ref.vm_uuid,
                vcenter_uuid=new.ref.vcenter_uuid,
                agent_id=new.agent_id,
                created_at=moment,
                updated_at=moment,
            )
        )
        return identifier

    async def _free_id(self, connection: AsyncConnection, vm_name: str, moment: datetime) -> str:
        suffix = 0
        while True:
            identifier = backup_id(vm_name, moment, suffix)
            if await connection.scalar(select(jobs.c.id).where(jobs.c.id == identifier)) is None:
                return identifier
            suffix = max(2, suffix + 1)


async def _by_request(connection: AsyncConnection, request_id: str) -> Job | None:
    row = (await connection.execute(SELECT_JOBS.where(jobs.c.request_id == request_id))).first()
    return None if row is None else to_job(row)
