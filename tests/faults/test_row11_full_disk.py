"""Row 11: the file system runs full at every point of a backup: nothing is sealed, parents are intact, and it says why.

At each step of seal, delete and consolidate: `tests/integration/repository/test_repository_full_disk.py`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_rig import CLUSTER, SIZE, Rig, content, noise, open_rig, tree

from sendense_blockio.extents import Extent
from sendense_repository.errors import NoRoom, PointNotFound
from sendense_repository.records import Holder, PlacedLayer

pytestmark = pytest.mark.faults

STEP = 48 << 10
MOST_STEPS = 24
"""Room is left in steps of less than a cluster, up to what the whole backup takes."""


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    root = tmp_path / "backups"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "sendense-test", str(root)], check=True)
    yield root
    subprocess.run(["umount", str(root)], check=True)


def leave(root: Path, room: int) -> Path:
    """Takes all room but so many bytes."""
    free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
    ballast = root / "ballast"
    ballast.write_bytes(bytes(max(0, free - room)))
    return ballast


async def test_a_backup_that_does_not_fit_changes_nothing_wherever_it_stops(small_root: Path, tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        disk = noise(SIZE, 1)
        full = await rig.backup("job-0", disk)
        before = tree(rig.root)
        refusals: list[str] = []
        for number in range(MOST_STEPS):
            ballast = leave(small_root, number * STEP)
            job = f"job-{number + 1}"
            try:
                await _back_up(rig, job, disk, full)
            except (NoRoom, AssertionError) as error:  # the latter is qemu's own writer, which stands for the capture
                refusals.append(str(error))
                with pytest.raises(PointNotFound):
                    await rig.parts.points.get(job)
            else:
                break
            finally:
                ballast.unlink()
            for layer in await rig.parts.catalogue.layers.of_job(full.layer.repository_id, job):
                await rig.parts.layers.discard(Holder(job, 1), layer.layer_id)
            assert tree(rig.root) == before
            assert content(rig.image(full), rig.scratch) == disk

        assert 5 < len(refusals) < MOST_STEPS
        assert any("are needed" in refusal and "are free" in refusal for refusal in refusals)


async def _back_up(rig: Rig, job: str, disk: bytes, full: PlacedLayer) -> None:
    changed = noise(4 * CLUSTER, 7) + disk[4 * CLUSTER :]
    await rig.backup(job, changed, [Extent(0, 4 * CLUSTER)], full.layer.layer_id)
