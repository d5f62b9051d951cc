"""Rows of `suspicions`: layers whose content may be wrong although their bytes are as they were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import delete, insert, select

from sendense_db.engine import Database
from sendense_repository.store.upkeep_tables import suspicions as table

_IDS_PER_QUERY = 500


class Suspicions:
    """Which layers are doubted, and why."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, doubts: Mapping[str, tuple[str, datetime]]) -> None:
        """Doubts layers, with the finding and its time; a newer finding takes the place of an older one."""
        async with self._database.begin() as connection:
            for layer_id, (finding, marked_at) in doubts.items():
                await connection.execute(delete(table).where(table.c.layer_id == layer_id))
                await connection.execute(insert(table).values(layer_id=layer_id, finding=finding, marked_at=marked_at))

    async def of(self, layer_ids: Sequence[str]) -> dict[str, str]:
        """Returns the findings by layer; layers that are not doubted are missing."""
        return {layer_id: finding for layer_id, (finding, _) in (await self.with_times(layer_ids)).items()}

    async def with_times(self, layer_ids: Sequence[str]) -> dict[str, tuple[str, datetime]]:
        """Returns the findings by layer, each with its time; layers that are not doubted are missing."""
        found: dict[str, tuple[str, datetime]] = {}
        async with self._database.read() as connection:
            for start in range(0, len(layer_ids), _IDS_PER_QUERY):
                some = layer_ids[start : start + _IDS_PER_QUERY]
                rows = await connection.execute(select(table).where(table.c.layer_id.in_(some)))
                found |= {row.layer_id: (row.finding, row.marked_at) for row in rows}
        return found
