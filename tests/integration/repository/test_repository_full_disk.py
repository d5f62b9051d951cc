"""A file system that runs full after any step of seal, delete or consolidate costs no point a byte.

What was begun is finished when there is room again; what was not is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import Rig, open_rig
from repository_template import (
    ACTIONS,
    DELETED,
    UNSEALED_JOB,
    Template,
    committed,
    leftovers,
    make_template,
    require_points,
)

from sendense_repository.errors import LayerPoisoned, NoRoom
from sendense_repository.records import Holder
from sendense_repository.steps import CONSOLIDATE_STEPS, DELETE_STEPS, SEAL_STEPS

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("chain"), unsealed=False))


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("unsealed"), unsealed=True))


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 24 MiB, where the rig has its repository."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    root = tmp_path / "backups"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "sendense-test", str(root)], check=True)
    yield root
    subprocess.run(["umount", str(root)], check=True)


class Ballast:
    """Takes all room right after a step, once."""

    def __init__(self, rig: Rig, step: str) -> None:
        self._file = rig.root / "ballast"
        self._step = step
        rig.at_step = self._at_step

    def _at_step(self, step: str) -> None:
        if step == self._step and not self._file.exists():
            with pytest.raises(OSError, match="No space left"):
                self._file.write_bytes(bytes(32 << 20))
            assert os.statvfs(self._file.parent).f_bavail == 0

    def drop(self) -> None:
        self._step = ""
        self._file.unlink()


async def full_at(rig: Rig, action: str, step: str) -> None:
    """Does something, the disk full from a step on: it fails for want of room, or what was left to do needed none."""
    ballast = Ballast(rig, step)
    with contextlib.suppress(NoRoom, LayerPoisoned, OSError):
        await ACTIONS[action](rig, 1)
    ballast.drop()


@pytest.mark.parametrize("step", SEAL_STEPS)
async def test_full_while_sealing(unsealed: Template, small_root: Path, tmp_path: Path, step: str) -> None:
    unsealed.copy(tmp_path, small_root)
    async with open_rig(tmp_path) as rig:
        await full_at(rig, "seal", step)
        require_points(unsealed, rig, ["job-0", "job-1"])
        await rig.restart()
        local = await rig.parts.registry.get("local")
        (layer,) = await rig.parts.catalogue.layers.of_job(local.repository_id, UNSEALED_JOB)
        if layer.poison:
            await rig.parts.layers.discard(Holder(UNSEALED_JOB, 2), layer.layer_id)
            jobs = ["job-0", "job-1"]
        else:
            sealed = await ACTIONS["seal"](rig, 2)
            await rig.commit(UNSEALED_JOB, sealed, attempt=2)
            jobs = [*unsealed.disks]

        require_points(unsealed, rig, jobs)
        assert leftovers(rig.root) == []


@pytest.mark.parametrize("step", DELETE_STEPS)
async def test_full_while_deleting(chain: Template, small_root: Path, tmp_path: Path, step: str) -> None:
    chain.copy(tmp_path, small_root)
    async with open_rig(tmp_path) as rig:
        await full_at(rig, "delete", step)
        await rig.restart()

        assert await committed(rig, [*chain.disks]) == ["job-0", "job-1"]
        require_points(chain, rig, ["job-0", "job-1"])
        assert leftovers(rig.root) == []


@pytest.mark.parametrize("step", CONSOLIDATE_STEPS)
async def test_full_while_consolidating(chain: Template, small_root: Path, tmp_path: Path, step: str) -> None:
    chain.copy(tmp_path, small_root)
    async with open_rig(tmp_path) as rig:
        await full_at(rig, "consolidate", step)
        begun = CONSOLIDATE_STEPS.index(step) >= CONSOLIDATE_STEPS.index("delete-intent")
        require_points(chain, rig, ["job-1", "job-3"])
        if not begun:
            # Nothing of the merges is left, without any restart.
            there = await committed(rig, [*chain.disks])
            assert there in ([*chain.disks], ["job-1", "job-3"])
            assert leftovers(rig.root) == []
        await rig.restart()
        there = await committed(rig, [*chain.disks])
        assert there == ["job-1", "job-3"] or (not begun and there == [*chain.disks])
        require_points(chain, rig, there)
        await ACTIONS["consolidate"](rig, 2)

        assert await committed(rig, [*chain.disks]) == [job for job in chain.disks if job not in DELETED]
        require_points(chain, rig, ["job-1", "job-3"])
        assert leftovers(rig.root) == []
