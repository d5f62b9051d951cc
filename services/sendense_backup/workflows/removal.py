"""What every operation does in the catalogue after restore points are gone from storage."""

from __future__ import annotations

from collections.abc import Sequence

from sendense_backup.workflows.operation import OperationWork


async def note_gone(work: OperationWork, backup_ids: Sequence[str]) -> None:
    """Says what the backups that built on these are now, and hides the rows of these; again is no error."""
    # The rows are hidden last: until then it can be told who built on them.
    for backup_id in await work.catalogue.jobs.building_on(backup_ids):
        point = await work.runtime.patiently(lambda backup_id=backup_id: work.runtime.repository.point(backup_id))  # type: ignore[misc]
        if point is not None:
            await work.catalogue.jobs.note_merged(point, backup_ids)
    await work.catalogue.jobs.mark_deleted(backup_ids)
