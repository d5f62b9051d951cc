"""Row 19: delete before a lock has run out, or with the clock moved forward: refused, and nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from repository_rig import VM, Rig, open_rig, tree

from sendense_db.columns import utc_now
from sendense_repository.options import RepositoryOptions
from sendense_repository.records import Holder
from sendense_repository.retention import Rules
from sendense_repository.trusted_clock import Reading, read_machine
from sendense_repository.upkeep import Upkeep, build_upkeep
from sendense_repository.upkeep_errors import ClockInDoubt, PointLocked

pytestmark = pytest.mark.faults


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
async def upkeep(rig: Rig) -> AsyncIterator[Upkeep]:
    built = build_upkeep(rig.parts)
    await built.start()
    yield built
    await built.stop()


async def points_of(rig: Rig) -> list[str]:
    repository = await rig.parts.registry.get("local")
    return [point.backup_id for point in await rig.parts.catalogue.points.of_vm(repository.repository_id, VM)]


async def lock(rig: Rig, seconds: int) -> None:
    """Locks new points, and those that are there."""
    record = await rig.parts.registry.get("local")
    await rig.parts.registry.keep(replace(record, options=record.options.with_lock(seconds, utc_now())))


async def test_row_19_nothing_deletes_a_locked_point(rig: Rig, upkeep: Upkeep) -> None:
    await rig.chain_of(3)
    await lock(rig, 3600)
    plan = await upkeep.retention.plan("local", [], Rules(keep_last=1))

    assert plan.removed() == {}
    assert all(any(why.startswith("locked until") for why in each.verdict.rules) for each in plan.points)
    for cascade in (False, True):
        with pytest.raises(PointLocked):
            await rig.parts.deleter.delete(Holder("delete", 1), ["job-0"], cascade=cascade)
    assert len(await points_of(rig)) == 3


async def test_row_19_a_clock_set_forward_opens_no_lock_and_stops_retention(
    rig: Rig, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.chain_of(3)
    await lock(rig, 86_400)
    plan = await upkeep.retention.plan("local", [], Rules(keep_last=1))
    honest = read_machine()

    def set_forward() -> Reading:
        return replace(read_machine(), wall=honest.wall + timedelta(days=30))

    for module in ("immutability", "retention_desk"):
        monkeypatch.setattr(f"sendense_repository.{module}.read_machine", set_forward)

    assert (await upkeep.retention.plan("local", [], Rules(keep_last=1))).removed() == {}
    with pytest.raises(PointLocked):
        await rig.parts.deleter.delete(Holder("delete", 1), ["job-2"], cascade=False)
    with pytest.raises(ClockInDoubt):
        await upkeep.retention.start(Holder("run", 1), "local", [], plan.rules, plan.as_of, plan.digest)
    assert len(await points_of(rig)) == 3


async def test_row_19_lowering_the_lock_frees_nothing_that_exists(rig: Rig) -> None:
    await rig.chain_of(2)
    await lock(rig, 3600)
    await lock(rig, 0)
    before = tree(rig.root)
    assert (await rig.parts.registry.get("local")).options.lock_seconds == 0

    with pytest.raises(PointLocked):
        await rig.parts.deleter.delete(Holder("delete", 1), ["job-1"], cascade=False)

    assert tree(rig.root) == before
    assert (await rig.parts.registry.get("local")).options != RepositoryOptions()
