"""Retention on real layers: apply does exactly the plan, or nothing; locks hold; what is kept stays as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from repository_rig import VM, Rig, open_rig

from sendense_repository.errors import InvalidValue
from sendense_repository.records import Holder
from sendense_repository.retention import Rules
from sendense_repository.retention_desk import RetentionPlan
from sendense_repository.store.retention import RetentionRun
from sendense_repository.upkeep import Upkeep, build_upkeep
from sendense_repository.upkeep_errors import PlanChanged, RetentionNotFound

LAST_TWO = Rules(keep_last=2)


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


async def applied(upkeep: Upkeep, plan: RetentionPlan, run_id: str = "run", attempt: int = 1) -> RetentionRun:
    desk = upkeep.retention
    await desk.start(Holder(run_id, attempt), "local", plan.vm_uuids, plan.rules, plan.as_of, plan.digest)
    async with asyncio.timeout(120):
        return await desk.finished(run_id)


async def points_of(rig: Rig) -> list[str]:
    repository = await rig.parts.registry.get("local")
    return [point.backup_id for point in await rig.parts.catalogue.points.of_vm(repository.repository_id, VM)]


async def test_apply_does_exactly_the_plan_and_kept_points_read_as_before(rig: Rig, upkeep: Upkeep) -> None:
    layers, disks = await rig.chain_of(5)
    plan = await upkeep.retention.plan("local", [], LAST_TWO)

    assert [(each.point.backup_id, each.verdict.keep) for each in plan.points] == [
        ("job-4", True),
        ("job-3", True),
        ("job-2", False),
        ("job-1", False),
        ("job-0", False),
    ]
    assert plan.points[0].verdict.rules == ("last good", "last")
    assert plan.removed() == {VM: ["job-2", "job-1", "job-0"]}
    assert plan.freed_bytes > 0
    assert len(await points_of(rig)) == 5

    run = await applied(upkeep, plan)

    assert (run.state, run.error_message, run.remaining) == ("done", "", [])
    assert run.freed_bytes > 0
    assert await points_of(rig) == ["job-4", "job-3"]
    assert [rig.content(layer) for layer in layers[3:]] == disks[3:]
    assert await applied(upkeep, plan) == run
    again = await upkeep.retention.plan("local", [], LAST_TWO)
    assert again.removed() == {}


async def test_a_plan_is_refused_when_things_changed(rig: Rig, upkeep: Upkeep) -> None:
    layers, disks = await rig.chain_of(3)
    plan = await upkeep.retention.plan("local", [VM], LAST_TWO)
    await rig.backup("job-3", disks[2], parent=layers[2].layer.layer_id)

    with pytest.raises(PlanChanged):
        await applied(upkeep, plan)

    assert len(await points_of(rig)) == 4
    with pytest.raises(RetentionNotFound):
        await upkeep.retention.get("run")


async def test_a_plan_is_only_good_for_a_day_and_for_its_own_rules(rig: Rig, upkeep: Upkeep) -> None:
    await rig.chain_of(3)
    plan = await upkeep.retention.plan("local", [], LAST_TWO)
    for other in (
        replace(plan, rules=Rules(keep_last=1)),
        replace(plan, as_of=plan.as_of - timedelta(days=2)),
        replace(plan, as_of=plan.as_of + timedelta(days=2)),
        replace(plan, vm_uuids=["564d8a2c-9999-2222-3333-0123456789ab"]),
    ):
        with pytest.raises(PlanChanged):
            await upkeep.retention.start(
                Holder("run", 1), "local", other.vm_uuids, other.rules, other.as_of, plan.digest
            )
    assert len(await points_of(rig)) == 3


async def test_a_mounted_point_stops_the_run_which_goes_on_later(rig: Rig, upkeep: Upkeep) -> None:
    layers, disks = await rig.chain_of(4)
    plan = await upkeep.retention.plan("local", [], Rules(keep_last=1))
    await rig.parts.points.lease("job-1", "mount-1", 3600)

    stopped = await applied(upkeep, plan)
    assert (stopped.state, stopped.error_reason) == ("failed", "POINT_LEASED")
    assert "mount-1" in stopped.error_message
    assert len(await points_of(rig)) == 4
    await rig.parts.points.release("job-1", "mount-1")

    done = await applied(upkeep, plan, attempt=2)

    assert done.state == "done"
    assert await points_of(rig) == ["job-3"]
    assert rig.content(layers[3]) == disks[3]


async def test_the_last_good_point_stays_when_everything_newer_is_corrupt(rig: Rig, upkeep: Upkeep) -> None:
    layers, _ = await rig.chain_of(4)
    await upkeep.integrity.note_damage(layers[2].layer, "found in passing")

    plan = await upkeep.retention.plan("local", [], Rules(keep_last=1))

    kept = {each.point.backup_id: each.verdict.rules for each in plan.points if each.verdict.keep}
    assert "last good" in kept["job-1"]
    assert set(kept) == {"job-1", "job-2", "job-3"}


async def test_rules_that_cannot_be_followed_are_refused(rig: Rig, upkeep: Upkeep) -> None:
    for rules in (Rules(keep_last=-1), Rules(time_zone="Nowhere/At-all"), Rules(time_zone="../../etc/passwd")):
        with pytest.raises(InvalidValue):
            await upkeep.retention.plan("local", [], rules)
