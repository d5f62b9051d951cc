"""An ISO image gives its files through the host's kernel; for guestfs it is a disk of `test_restore_contract`."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from restore_images import Images, Point, make_full, sha256
from restore_stacks import build_iso
from restore_trees import assert_tar_equals
from restore_world import left_on_host, restore_world

from sendense_restore.kernel_backend import kernel_refuses

pytestmark = pytest.mark.skipif(shutil.which("xorriso") is None, reason="xorriso is not installed")


async def test_an_iso_image_gives_what_was_written(sendense_home: Path, tmp_path: Path) -> None:
    if missing := await kernel_refuses("iso9660"):
        pytest.skip(missing)
    raw, source = await asyncio.to_thread(build_iso, tmp_path / "iso")
    folder = tmp_path / "disk-0"
    folder.mkdir()
    layer = await asyncio.to_thread(make_full, raw, folder / "full-20251004-010203.qcow2")
    images = Images({"iso": Point("backup-iso-20251004010203", {0: layer})}, {layer: sha256(layer)})
    async with restore_world(images) as world:
        mount = await world.mount("iso", backend="kernel")
        (volume,) = mount.volumes
        assert (volume.file_system, volume.label) == ("iso9660", "INSTALL")
        tar = tmp_path / "all.tar"
        tar.write_bytes(await world.download(mount.mount_id, f"{volume.name}:/"))
        await asyncio.to_thread(assert_tar_equals, tar, source)
        await world.unmount(mount.mount_id)
        assert left_on_host(world.settings.root) == []
    images.assert_unchanged()
