"""Row 18: a consolidation races a backup and a reader, and the process is killed: kept points are byte-identical."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import content, open_rig
from repository_template import (
    ACTIONS,
    RACING_JOB,
    Killer,
    Template,
    committed,
    leftovers,
    make_template,
    next_disk,
    require_points,
)

from sendense_repository.steps import BUILD_STEPS, COMMIT_STEPS, SWAP_STEPS

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("chain"), unsealed=False))


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as made:
        yield made


async def test_a_race_without_any_death_ends_well(chain: Template, tmp_path: Path) -> None:
    chain.copy(tmp_path)
    async with open_rig(tmp_path) as rig:
        await ACTIONS["race"](rig, 1)
        assert await committed(rig, [*chain.disks]) == ["job-1", "job-3"]
        require_points(chain, rig, ["job-1", "job-3"])
        raced = (await rig.parts.points.get(RACING_JOB)).layers[0]
        assert content(raced.files(rig.root).sealed, rig.scratch) == next_disk(chain.disks["job-3"])
        assert leftovers(rig.root) == []


@pytest.mark.parametrize("step", [*BUILD_STEPS[1::2], *COMMIT_STEPS, "delete-intent", *SWAP_STEPS[1::2], "rename"])
async def test_killed_in_the_middle_of_a_race(chain: Template, killer: Killer, tmp_path: Path, step: str) -> None:
    chain.copy(tmp_path)
    killer.kill(tmp_path, "race", step)

    async with open_rig(tmp_path) as rig:
        there = await committed(rig, [*chain.disks])
        assert {"job-1", "job-3"} <= set(there)
        require_points(chain, rig, there)
        await rig.parts.points.release("job-3", "mount-7")  # its holder died with the service
        await ACTIONS["race"](rig, 2)

        assert await committed(rig, [*chain.disks]) == ["job-1", "job-3"]
        require_points(chain, rig, ["job-1", "job-3"])
        raced = (await rig.parts.points.get(RACING_JOB)).layers[0]
        assert content(raced.files(rig.root).sealed, rig.scratch) == next_disk(chain.disks["job-3"])
        assert leftovers(rig.root) == []
