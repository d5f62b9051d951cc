"""At most so much at a time on one host and one datastore; whoever waits gets its turn (cbt-facts 14)."""

from __future__ import annotations

import asyncio
import random

from sendense_agent.crowding import Crowding


async def test_fact_14_no_place_ever_holds_more_than_its_limit() -> None:
    crowding, most = Crowding(3), 3
    inside: dict[str, int] = {}
    worst = 0
    rng = random.Random(4)

    async def visit(places: list[str]) -> None:
        nonlocal worst
        async with crowding.inside(places):
            for each in places:
                inside[each] = inside.get(each, 0) + 1
            worst = max(worst, *inside.values())
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            for each in places:
                inside[each] -= 1

    names = ["host-1", "host-2", "store-1", "store-2", "store-3"]
    async with asyncio.timeout(60):
        await asyncio.gather(*(visit(rng.sample(names, rng.randrange(1, 4))) for _ in range(200)))
    assert worst == most
    assert not any(inside.values())


async def test_fact_14_who_waits_for_one_place_holds_no_other() -> None:
    crowding = Crowding(1)
    assert await crowding.enter(["host-1", "store-1"])
    assert not await crowding.enter(["host-2", "store-1"], 0.01)
    assert await crowding.enter(["host-2", "store-2"], 0.01)
    await crowding.leave(["host-1", "store-1"])
    assert await crowding.enter(["store-1"], 0.01)


async def test_fact_14_who_is_cancelled_while_waiting_takes_no_place() -> None:
    crowding = Crowding(1)
    assert await crowding.enter(["host-1"])
    waiting = asyncio.create_task(crowding.enter(["host-1"]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await crowding.leave(["host-1"])
    assert await crowding.enter(["host-1"], 0.01)


async def test_one_place_named_twice_is_one_place() -> None:
    crowding = Crowding(1)
    async with crowding.inside(["host-1", "host-1"]):
        assert not await crowding.enter(["host-1"], 0.01)
    assert await crowding.enter(["host-1"], 0.01)
