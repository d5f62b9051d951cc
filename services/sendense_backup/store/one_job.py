"""One job a VM, over backups and operations: the second is refused, naming the first.

Who takes a new job for a VM first locks the VM's context, so that two replicas decide one after the other.
"""

from __future__ import annotations

from sqlalchemy import select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from sendense_backup.errors import BackupRunning
from sendense_backup.store.tables import contexts, is_active, jobs, operations


async def refuse_second_job(connection: AsyncConnection, vm_context_id: str, vm_name: str) -> None:
    """Locks a VM until the end of the transaction.

    Raises:
        BackupRunning: The VM has a job that has not ended.
    """
    await connection.execute(
        select(contexts.c.context_id).where(contexts.c.context_id == vm_context_id).with_for_update()
    )
    running = await connection.scalar(
        union_all(
            select(jobs.c.id).where(jobs.c.vm_context_id == vm_context_id, is_active(jobs)),
            select(operations.c.id).where(operations.c.vm_context_id == vm_context_id, is_active(operations)),
        ).limit(1)
    )
    if running is not None:
        raise BackupRunning(
            vm_name, str(running), help_text=f"Wait for it, or cancel it: sendense-ctl job cancel --job-id {running}"
        )
