"""Row 25: a raw guest disk that begins with a qcow2 header that names a file of the host gives the guest's bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from restore_images import CANARY, MIB, Images, Point, make_full, run, sha256
from restore_world import left_on_host, restore_world
from test_restore_disks import ended, fetch, start

from sendense.restore.v1 import disk_pb2
from sendense_rpc.errors import RemoteError

pytestmark = pytest.mark.faults
SECRET = b"secret of the host " * 1000


@pytest.mark.parametrize("kind", ["backing file", "data file"])
async def test_a_guest_that_pretends_to_be_an_image_gives_its_own_bytes(
    sendense_home: Path, tmp_path: Path, kind: str
) -> None:
    trap = tmp_path / "trap.raw"
    CANARY.write_bytes(SECRET)
    try:
        if kind == "backing file":
            run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", CANARY, trap, "8M")
        else:
            options = f"data_file={tmp_path / 'data'},data_file_raw=on"
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, trap, "8M")
        guest = trap.read_bytes()
        trap.write_bytes(guest + bytes(-len(guest) % MIB))
        expected = trap.read_bytes()
        folder = tmp_path / "disk-0"
        folder.mkdir()
        layer = make_full(trap, folder / "full-20251004-010203.qcow2")
        images = Images({"trap": Point("backup-trap-20251004010203", {0: layer})}, {layer: sha256(layer)})
        async with restore_world(images) as world:
            with pytest.raises(RemoteError) as caught:  # it holds no file system, whatever it looks like
                await world.mount("trap")
            assert caught.value.reason == "NO_FILE_SYSTEM"
            export = await ended(world, (await start(world, "trap", "raw")).export_id)
            await fetch(world, export.export_id, tmp_path / "exported.raw")
            assert (tmp_path / "exported.raw").read_bytes() == expected
            served = await world.peer.call(
                world.disks.ServePoint, disk_pb2.ServePointRequest(backup_id=images.points["trap"].backup_id)
            )
            run("nbdcopy", served.disks[0].uri, tmp_path / "served.raw")
            assert (tmp_path / "served.raw").read_bytes() == expected
            await world.peer.call(world.disks.StopServing, disk_pb2.StopServingRequest(served_id=served.served_id))
            await world.peer.call(
                world.disks.DeleteDiskExport, disk_pb2.DeleteDiskExportRequest(export_id=export.export_id)
            )
            assert left_on_host(world.settings.root) == []
        images.assert_unchanged()
    finally:
        CANARY.unlink()
