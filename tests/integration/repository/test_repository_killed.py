"""A process that is killed after any step of a merging deletion costs no kept point a byte, and leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import open_rig
from repository_template import (
    ACTIONS,
    DELETED,
    Killer,
    Template,
    committed,
    leftovers,
    make_template,
    require_points,
)

from sendense_repository.steps import CONSOLIDATE_STEPS, SWAP_STEPS

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("chain"), unsealed=False))


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as made:
        yield made


@pytest.mark.parametrize(
    ("step", "occurrence"), [*((step, 1) for step in CONSOLIDATE_STEPS), *((step, 2) for step in SWAP_STEPS)]
)
async def test_killed_while_consolidating(
    chain: Template, killer: Killer, tmp_path: Path, step: str, occurrence: int
) -> None:
    chain.copy(tmp_path)
    killer.kill(tmp_path, "consolidate", step, occurrence)

    async with open_rig(tmp_path) as rig:
        begun = CONSOLIDATE_STEPS.index(step) >= CONSOLIDATE_STEPS.index("delete-intent")
        there = [job for job in chain.disks if not begun or job not in DELETED]
        assert await committed(rig, [*chain.disks]) == there
        require_points(chain, rig, there)
        assert leftovers(rig.root) == []
        assert list(rig.work_dir.iterdir()) == []
        await ACTIONS["consolidate"](rig, 2)

        assert await committed(rig, [*chain.disks]) == ["job-1", "job-3"]
        require_points(chain, rig, ["job-1", "job-3"])
        assert len(list(rig.root.rglob("*.qcow2"))) == 2
        assert leftovers(rig.root) == []
