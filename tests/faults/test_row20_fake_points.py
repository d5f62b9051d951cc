"""Row 20: fake points with future dates: retention evicts no real one for them; order is by sequence, not by clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from repository_rig import SIZE, VM, Rig, noise, open_rig
from sqlalchemy import update

from sendense_repository.retention import Rules
from sendense_repository.store.tables import restore_points
from sendense_repository.upkeep import build_upkeep

pytestmark = pytest.mark.faults

RULES = Rules(keep_last=2, keep_daily=3, keep_yearly=2)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


async def kept(rig: Rig) -> set[str]:
    plan = await build_upkeep(rig.parts).retention.plan("local", [VM], RULES)
    return {each.point.backup_id for each in plan.points if each.verdict.keep}


async def date(rig: Rig, backup_id: str, by: timedelta) -> None:
    """Gives a point another date, as a forged points file would when it is imported."""
    point = (await rig.parts.points.get(backup_id)).point
    async with rig.database.begin() as connection:
        await connection.execute(
            update(restore_points)
            .where(restore_points.c.backup_id == backup_id)
            .values(committed_at=point.committed_at + by)
        )


@pytest.mark.parametrize("days", [3650, 1, -1, -3650])
async def test_row_20_points_with_false_dates_evict_no_real_one(rig: Rig, days: int) -> None:
    for number in range(4):
        await rig.backup(f"real-{number}", noise(SIZE, number))
        await date(rig, f"real-{number}", -timedelta(days=4 - number))
    real = await kept(rig)
    assert real >= {"real-2", "real-3"}
    for number in range(3):
        await rig.backup(f"fake-{number}", noise(SIZE, 10 + number))
        await date(rig, f"fake-{number}", timedelta(days=days * (number + 1)))

    assert real <= await kept(rig)
