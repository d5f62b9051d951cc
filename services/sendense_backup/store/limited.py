"""The caller's limits as conditions on jobs: what is outside is as if it were not there."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, or_

from sendense_backup.store.tables import contexts, jobs
from sendense_rpc.identity import current_limits


def admitted() -> list[ColumnElement[bool]]:
    """Returns the conditions on a query of `SELECT_JOBS` that a limited caller's token asks for; none for others."""
    limits = current_limits()
    conditions: list[ColumnElement[bool]] = []
    if limits.vms:
        uuids = [each.lower() for each in limits.vms]
        conditions.append(or_(jobs.c.vm_name.in_(limits.vms), func.lower(contexts.c.vm_uuid).in_(uuids)))
    if limits.repositories:
        conditions.append(
            or_(jobs.c.repository_name.in_(limits.repositories), jobs.c.repository_id.in_(limits.repositories))
        )
    return conditions
