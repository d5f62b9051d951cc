"""Row 28: nothing in a guest leads out of its mount, whichever back end mounted it and however it is asked for.

A canary file on the host holds a secret; links of every kind lead to it, and no answer may hold it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from restore_images import CANARY, Images, images_of_session
from restore_ways_out import SECRET, assert_no_way_out
from restore_world import left_on_host, restore_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


async def test_nothing_outside_is_read_and_nothing_is_written(sendense_home: Path, images: Images) -> None:
    """By the kernel back end; for guestfs `test_restore_contract` asks the same, in the one micro-VM of its own."""
    CANARY.write_text(SECRET)
    try:
        async with restore_world(images) as world:
            mount = await world.mount("full", backend="kernel")
            await assert_no_way_out(world, mount.mount_id, ["tar", "tar.zst", "zip"])
            root = Path(mount.mount_path)
            with pytest.raises(OSError, match="Read-only"):
                (root / "etc" / "x").touch()
            await world.unmount(mount.mount_id)
            assert left_on_host(world.settings.root) == []
        assert CANARY.read_text() == SECRET
        images.assert_unchanged()
    finally:
        CANARY.unlink()


async def test_a_guests_fstab_binds_nothing_outside(sendense_home: Path, images: Images) -> None:
    """/linked leads to ../../../tmp, and the fstab mounts a volume there: no host directory is covered."""
    CANARY.touch()
    try:
        async with restore_world(images) as world:
            mount = await world.mount("full")
            assert CANARY.exists()
            await world.unmount(mount.mount_id)
    finally:
        CANARY.unlink()
