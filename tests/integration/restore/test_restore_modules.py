"""File systems for which the host's kernel needs a module that many lack: FAT, and ISO images (of CDs).

For guestfs both are disks of `test_restore_contract`.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from restore_images import Images, Point, make_full, sha256
from restore_stacks import build_fat, build_iso
from restore_trees import assert_tar_equals
from restore_world import left_on_host, restore_world

from sendense_restore.kernel_backend import kernel_refuses


@pytest.mark.parametrize(("kind", "tool"), [("iso9660", "xorriso"), ("vfat", "mcopy")])
async def test_it_gives_what_was_written(sendense_home: Path, tmp_path: Path, kind: str, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if missing := await kernel_refuses(kind):
        pytest.skip(missing)
    build, unix = (build_iso, True) if kind == "iso9660" else (build_fat, False)
    raw, source = await asyncio.to_thread(build, tmp_path / "made")
    folder = tmp_path / "disk-0"
    folder.mkdir()
    layer = await asyncio.to_thread(make_full, raw, folder / "full-20251004-010203.qcow2")
    images = Images({"it": Point("backup-it-20251004010203", {0: layer})}, {layer: sha256(layer)})
    async with restore_world(images) as world:
        mount = await world.mount("it", backend="kernel")
        (volume,) = mount.volumes
        assert volume.file_system == kind
        tar = tmp_path / "all.tar"
        tar.write_bytes(await world.download(mount.mount_id, f"{volume.name}:/"))
        await asyncio.to_thread(assert_tar_equals, tar, source, unix=unix, links=unix)
        await world.unmount(mount.mount_id)
        assert left_on_host(world.settings.root) == []
    images.assert_unchanged()
