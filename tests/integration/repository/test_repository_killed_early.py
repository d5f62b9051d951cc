"""A process that is killed after any step of seal or delete costs no point a byte and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import open_rig, tree
from repository_template import (
    ACTIONS,
    UNSEALED_JOB,
    Killer,
    Template,
    committed,
    leftovers,
    make_template,
    require_points,
)

from sendense_repository.steps import DELETE_STEPS, SEAL_STEPS

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("chain"), unsealed=False))


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("unsealed"), unsealed=True))


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as made:
        yield made


@pytest.mark.parametrize("step", SEAL_STEPS)
async def test_killed_while_sealing(unsealed: Template, killer: Killer, tmp_path: Path, step: str) -> None:
    root = unsealed.copy(tmp_path)
    before = {name: digest for name, digest in tree(root).items() if not name.startswith(unsealed.names[UNSEALED_JOB])}
    killer.kill(tmp_path, "seal", step)

    async with open_rig(tmp_path) as rig:
        assert await committed(rig, [*unsealed.disks]) == ["job-0", "job-1"]
        require_points(unsealed, rig, ["job-0", "job-1"])
        sealed = await ACTIONS["seal"](rig, 2)
        await rig.commit(UNSEALED_JOB, sealed, attempt=2)

        require_points(unsealed, rig, [*unsealed.disks])
        assert leftovers(rig.root) == []
        after = tree(rig.root)
        assert [name for name, digest in before.items() if after[name] != digest] == []


@pytest.mark.parametrize("step", DELETE_STEPS)
async def test_killed_while_deleting(chain: Template, killer: Killer, tmp_path: Path, step: str) -> None:
    chain.copy(tmp_path)
    killer.kill(tmp_path, "delete", step)

    async with open_rig(tmp_path) as rig:
        # The intent is the first step: what was begun is finished by the start alone.
        assert await committed(rig, [*chain.disks]) == ["job-0", "job-1"]
        require_points(chain, rig, ["job-0", "job-1"])
        assert leftovers(rig.root) == []
        assert len(list(rig.root.rglob("*.qcow2"))) == 2
        await ACTIONS["delete"](rig, 2)
