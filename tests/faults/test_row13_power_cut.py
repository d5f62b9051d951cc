"""Row 13: the power goes at each step of sealing and merging, emulated by copying everything at that instant.

Whatever the copy shows is a state from which the service starts: every committed point reads as before, and what was
begun is finished or dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from repository_rig import open_rig
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

from sendense_repository.steps import CONSOLIDATE_STEPS, SEAL_STEPS

pytestmark = pytest.mark.faults


def folder(path: Path) -> Path:
    path.mkdir()
    return path


async def photographed(template: Template, home: Path, action: str, steps: Sequence[str]) -> dict[str, Template]:
    """Does something once and copies storage and catalogue right after each step."""
    template.copy(home)
    photos: dict[str, Template] = {}
    async with open_rig(home) as rig:

        def at_step(step: str) -> None:
            if step in photos:
                return
            place = home.parent / f"photo-{step}"
            place.mkdir()
            shutil.copytree(rig.root, place / "backups")
            for name in home.glob("db.sqlite*"):
                shutil.copy(name, place / name.name)
            photos[step] = Template(place, template.disks, template.names)

        rig.at_step = at_step
        await ACTIONS[action](rig, 1)
    assert set(photos) == set(steps)
    return photos


async def test_power_cut_at_each_step_of_sealing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    template = await make_template(tmp_path_factory.mktemp("unsealed"), unsealed=True)
    photos = await photographed(template, folder(tmp_path / "live"), "seal", SEAL_STEPS)
    for step, photo in photos.items():
        home = tmp_path / f"after-{step}"
        home.mkdir()
        photo.copy(home)
        async with open_rig(home) as rig:
            assert await committed(rig, [*template.disks]) == ["job-0", "job-1"], step
            sealed = await ACTIONS["seal"](rig, 2)
            await rig.commit(UNSEALED_JOB, sealed, attempt=2)
            require_points(template, rig, [*template.disks])
            assert leftovers(rig.root) == [], step


async def test_power_cut_at_each_step_of_merging(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    template = await make_template(tmp_path_factory.mktemp("chain"), unsealed=False)
    photos = await photographed(template, folder(tmp_path / "live"), "consolidate", CONSOLIDATE_STEPS)
    for step, photo in photos.items():
        home = tmp_path / f"after-{step}"
        home.mkdir()
        photo.copy(home)
        begun = CONSOLIDATE_STEPS.index(step) >= CONSOLIDATE_STEPS.index("delete-intent")
        async with open_rig(home) as rig:
            there = [job for job in template.disks if not begun or job not in DELETED]
            assert await committed(rig, [*template.disks]) == there, step
            require_points(template, rig, there)
            assert leftovers(rig.root) == [], step
