"""Row 26: a tampered image is refused before qemu opens it, by mounts and by exports alike, and nothing is left."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from restore_images import CANARY, Images, Point, run
from restore_world import left_on_host, restore_world
from test_restore_disks import ended, start

from sendense.restore.v1 import disk_pb2
from sendense_rpc.errors import RemoteError

pytestmark = pytest.mark.faults


def _patch(offset: int, value: bytes) -> Callable[[Path], None]:
    def apply(layer: Path) -> None:
        with layer.open("r+b") as file:
            file.seek(offset)
            file.write(value)

    return apply


def _create(*options: str) -> Callable[[Path], None]:
    def apply(layer: Path) -> None:
        layer.unlink()
        run("qemu-img", "create", "-q", "-f", "qcow2", *options, layer, "16M")

    return apply


TRICKS: dict[str, Callable[[Path], None]] = {
    "a backing file elsewhere": _create("-u", "-F", "raw", "-b", str(CANARY)),
    "a backing file above": _create("-u", "-F", "qcow2", "-b", "../../other.qcow2"),
    "json:": _create("-u", "-F", "raw", "-b", 'json:{"driver":"file","filename":"/etc/passwd"}'),
    "nbd:": _create("-u", "-F", "raw", "-b", "nbd:unix:/run/x"),
    "a backing file without format": _create("-u", "-b", str(CANARY), "-F", "raw"),
    "another version": _patch(4, struct.pack(">I", 2)),
    "an unknown feature": _patch(72, struct.pack(">Q", 1 << 40)),
    "an external data file": _patch(72, struct.pack(">Q", 1 << 2)),
    "marked corrupt": _patch(72, struct.pack(">Q", 1 << 1)),
    "encryption": _patch(32, struct.pack(">I", 1)),
    "a huge L1 table": _patch(36, struct.pack(">I", 0x7FFFFFFF)),
    "a huge virtual size": _patch(24, struct.pack(">Q", 1 << 62)),
    "clusters of 2 GiB": _patch(20, struct.pack(">I", 31)),
    "internal snapshots": _patch(60, struct.pack(">I", 9)),
    "no image at all": _patch(0, b"\0" * 512),
}


@pytest.mark.parametrize("trick", list(TRICKS))
async def test_a_tampered_layer_is_refused(sendense_home: Path, tmp_path: Path, trick: str) -> None:
    folder = tmp_path / "vm" / "disk-0"
    folder.mkdir(parents=True)
    layer = folder / "full-20251004-010203.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", layer, "16M")
    TRICKS[trick](layer)
    CANARY.write_text("secret of the host")
    try:
        images = Images({"bad": Point("backup-bad-20251004010203", {0: layer})}, {})
        async with restore_world(images) as world:
            for backend in ("kernel", "guestfs"):
                with pytest.raises(RemoteError) as caught:
                    await world.mount("bad", backend=backend)
                assert caught.value.reason == "MOUNT_FAILED"
                assert layer.name in caught.value.message
            try:
                export = await ended(world, (await start(world, "bad", "raw")).export_id)
            except RemoteError as error:
                if error.reason != "DISK_EXPORT_FAILED":
                    raise
            else:
                assert (export.state, export.error_reason) == ("failed", "DISK_EXPORT_FAILED")
                request = disk_pb2.DeleteDiskExportRequest(export_id=export.export_id)
                await world.peer.call(world.disks.DeleteDiskExport, request)
            assert left_on_host(world.settings.root) == []
    finally:
        CANARY.unlink()
