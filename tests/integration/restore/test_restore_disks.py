"""Whole disks: an exported file and a served disk equal the point; what cannot be exported says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from restore_images import CANARY, MIB, Images, images_of_session
from restore_world import World, eventually, left_on_host, restore_world

from sendense.restore.v1 import disk_pb2
from sendense_qemu import img
from sendense_restore import room
from sendense_rpc.errors import RemoteError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of_session(tmp_path_factory)


@pytest.fixture
async def world(sendense_home: Path, images: Images) -> AsyncIterator[World]:
    async with restore_world(images, max_disk_exports=2) as world:
        yield world
    images.assert_unchanged()


async def start(world: World, name: str, fmt: str, disk_id: int = 0, **more: Any) -> disk_pb2.DiskExport:
    request = disk_pb2.StartDiskExportRequest(
        backup_id=world.images.points[name].backup_id, disk_id=disk_id, format=fmt, **more
    )
    export: disk_pb2.DiskExport = await world.peer.call(world.disks.StartDiskExport, request)
    return export


async def ended(world: World, export_id: str) -> disk_pb2.DiskExport:
    found = disk_pb2.DiskExport()

    async def has_ended() -> bool:
        nonlocal found
        found = await world.peer.call(world.disks.GetDiskExport, disk_pb2.GetDiskExportRequest(export_id=export_id))
        return found.state != "running"

    await eventually(has_ended, 120)
    return found


async def fetch(world: World, export_id: str, target: Path, **headers: str) -> int:
    async with world.http.get(world.url(export_id), headers=world.headers() | headers) as response:
        assert response.status in (200, 206), await response.text()
        with target.open("ab") as file:
            async for chunk in response.content.iter_chunked(MIB):
                file.write(chunk)
        return response.status


async def program(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "vmdk"])
async def test_an_exported_disk_equals_the_point(world: World, fmt: str, short_tmp: Path) -> None:
    export = await ended(world, (await start(world, "incr", fmt)).export_id)
    assert (export.state, export.percent, export.error_message) == ("completed", 100.0, "")
    target = short_tmp / f"disk.{fmt}"
    await fetch(world, export.export_id, target)
    assert target.stat().st_size == export.file_size_bytes
    said = await program(
        "qemu-img", "compare", "-f", "qcow2", "-F", fmt, str(world.images.points["incr"].layers[0]), str(target)
    )
    assert "Images are identical" in said
    # The lease was for the writing only; the file is the service's own.
    assert world.fake_points.leases == {}
    await world.peer.call(world.disks.DeleteDiskExport, disk_pb2.DeleteDiskExportRequest(export_id=export.export_id))
    assert left_on_host(world.settings.root) == []


async def test_an_export_can_be_resumed_and_is_named(world: World, short_tmp: Path) -> None:
    export = await ended(world, (await start(world, "incr", "qcow2", disk_id=1)).export_id)
    target = short_tmp / "disk.qcow2"
    async with world.http.get(world.url(export.export_id), headers=world.headers()) as response:
        name = f"{export.backup_id}-disk-1.qcow2"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{name}"'
        target.write_bytes(await response.content.readexactly(100_000))
    assert await fetch(world, export.export_id, target, Range="bytes=100000-") == 206
    layer = world.images.points["incr"].layers[1]
    assert (await img.compare(layer, "qcow2", target, "qcow2")).identical


async def test_a_disk_that_begins_with_a_qcow2_header_is_exported_as_it_is(world: World, short_tmp: Path) -> None:
    CANARY.write_text("secret of the host")
    try:
        for fmt in ("raw", "qcow2", "vmdk"):
            export = await ended(world, (await start(world, "trap", fmt)).export_id)
            assert export.state == "completed", export
            target = short_tmp / f"trap.{fmt}"
            await fetch(world, export.export_id, target)
            if fmt == "raw":
                content = target.read_bytes()
                assert content[:4] == b"QFI\xfb"
                assert b"secret" not in content
            await world.peer.call(
                world.disks.DeleteDiskExport, disk_pb2.DeleteDiskExportRequest(export_id=export.export_id)
            )
    finally:
        CANARY.unlink()


async def test_a_served_disk_equals_the_point_and_ends(world: World, short_tmp: Path) -> None:
    request = disk_pb2.ServePointRequest(backup_id=world.images.points["incr"].backup_id)
    served = await world.peer.call(world.disks.ServePoint, request)
    assert [disk.disk_id for disk in served.disks] == [0, 1]
    assert list(world.fake_points.leases) == [(served.backup_id, served.served_id)]
    for disk in served.disks:
        target = short_tmp / f"{disk.disk_id}.raw"
        await program("nbdcopy", disk.uri, str(target))
        layer = world.images.points["incr"].layers[disk.disk_id]
        assert (await img.compare(layer, "qcow2", target, "raw")).identical
        assert target.stat().st_size == disk.size_bytes
    listed = await world.peer.call(world.disks.ListServedPoints, disk_pb2.ListServedPointsRequest())
    assert [point.served_id for point in listed.points] == [served.served_id]
    await world.peer.call(world.disks.StopServing, disk_pb2.StopServingRequest(served_id=served.served_id))
    assert (world.fake_exports.exports, world.fake_points.leases) == ({}, {})
    with pytest.raises(RemoteError) as caught:
        await world.peer.call(world.disks.StopServing, disk_pb2.StopServingRequest(served_id=served.served_id))
    assert caught.value.reason == "SERVED_POINT_NOT_FOUND"


async def test_what_cannot_be_exported_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reason(**changes: Any) -> str:
        with pytest.raises(RemoteError) as caught:
            await start(world, **({"name": "empty", "fmt": "raw"} | changes))
        return caught.value.reason

    assert await reason(disk_id=9) == "DISK_NOT_FOUND"
    assert await reason(fmt="vhd") == "INVALID_FIELD"
    point = world.images.points["empty"]
    point.damaged = True
    try:
        assert await reason() == "POINT_DAMAGED"
        assert (await start(world, "empty", "raw", force=True)).state == "running"
    finally:
        point.damaged = False
    point.suspicion = "3 blocks had changed unseen"
    try:
        assert await reason() == "POINT_SUSPECT"
        with pytest.raises(RemoteError, match="3 blocks had changed unseen"):
            await world.mount("empty")
        with pytest.raises(RemoteError, match="3 blocks had changed unseen"):
            await world.peer.call(world.disks.ServePoint, disk_pb2.ServePointRequest(backup_id=point.backup_id))
        with pytest.raises(RemoteError) as caught:
            await world.mount("empty", force=True)
        assert caught.value.reason == "NO_FILE_SYSTEM"  # it was looked at
    finally:
        point.suspicion = ""
    point.status = "failed"
    try:
        assert await reason() == "BACKUP_NOT_COMPLETED"
    finally:
        point.status = "completed"
    monkeypatch.setattr(room, "RESERVE", 1 << 60)  # as on a full file system
    assert await reason() == "NO_ROOM"
    monkeypatch.undo()
    await start(world, "empty", "raw")
    assert await reason() == "TOO_MANY_DISK_EXPORTS"
    async with world.http.get(world.url("export-none"), headers=world.headers()) as response:
        assert (response.status, (await response.json())["reason"]) == (404, "DISK_EXPORT_NOT_FOUND")


async def test_a_damaged_layer_fails_the_export_and_leaves_no_file(world: World, short_tmp: Path) -> None:
    layer = short_tmp / "bad.qcow2"
    await program("qemu-img", "create", "-q", "-f", "qcow2", str(layer), "64M")
    await program("qemu-io", "-f", "qcow2", "-c", "write -q 0 32M", str(layer))
    with layer.open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)  # tables are sound, data is missing
        file.seek(0x30000)
        file.write(b"\x80\xff\xff\xff\xff\xff\xff\x00" * 4096)
    point = world.images.points["empty"]
    good, point.layers = point.layers, {0: layer}
    try:
        export = await ended(world, (await start(world, "empty", "raw")).export_id)
    finally:
        point.layers = good
    assert (export.state, export.error_reason) == ("failed", "DISK_EXPORT_FAILED")
    async with world.http.get(world.url(export.export_id), headers=world.headers()) as response:
        assert (response.status, (await response.json())["reason"]) == (400, "DISK_EXPORT_NOT_READY")
