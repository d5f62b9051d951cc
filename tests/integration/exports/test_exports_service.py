"""The exports service over gRPC, with its real catalogue and a real nbdd."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
from exports_node import Node, caller, catalogue, node_running, prepared, service_running
from nbdd_process import listed, loop_device, nbdcopy, nbdd_running, noise, overlay
from sqlalchemy import select

from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_exports.config import ExportsSettings
from sendense_exports.store import nbd_exports
from sendense_qemu import img
from sendense_qemu.nodes import file_access, qcow2_node
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_rpc.errors import Kind, RemoteError

MIB = 1 << 20


@pytest.fixture
async def settings(sendense_home: Path) -> ExportsSettings:
    return await prepared()


@pytest.fixture
async def node(settings: ExportsSettings) -> AsyncIterator[Node]:
    async with node_running(settings) as running:
        yield running


async def test_a_created_export_is_served_before_the_answer_and_is_gone_after_delete(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    export = await node.create("backup-1", incr)
    assert (export.state, export.size_bytes, export.epoch, export.error) == ("serving", 4 * MIB, 1, "")
    assert (export.holder, export.agent_id, export.format) == ("job-1", "agent-1", "qcow2")
    assert export.socket_path == str(node.settings.nbd_socket)
    source = node.images / "source.raw"
    source.write_bytes(os.urandom(4 * MIB))
    await nbdcopy(source, node.nbdd.uri("backup-1"))
    await node.delete("backup-1")
    assert await listed(node.nbdd) == set()
    assert (await img.compare(source, "raw", incr, "qcow2")).identical
    with pytest.raises(RemoteError) as caught:
        await node.get("backup-1")
    assert (caught.value.kind, caught.value.reason) == (Kind.NOT_FOUND, "EXPORT_NOT_FOUND")
    await node.delete("backup-1")
    async with catalogue(node.settings) as database, database.read() as connection:
        row = (await connection.execute(select(nbd_exports))).mappings().one()
    assert row["deleted_at"] is not None


async def test_creating_again_for_the_same_attempt_gives_the_same_export(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    first = await node.create("backup-1", incr)
    again = await node.create("backup-1", incr)
    assert again.lease_expires_at.ToDatetime() > first.lease_expires_at.ToDatetime()
    lease = first.lease_expires_at.ToDatetime() - first.created_at.ToDatetime()
    assert lease.total_seconds() == node.settings.lease_seconds
    again.ClearField("lease_expires_at")
    first.ClearField("lease_expires_at")
    assert again == first
    for change in ({"read_only": True}, {"attempt": 2}, {"job": "job-2"}):
        with pytest.raises(RemoteError) as caught:
            await node.create("backup-1", incr, **change)  # type: ignore[arg-type]
        assert caught.value.reason == "EXPORT_EXISTS"
    assert (await node.get("backup-1")).state == "serving"


async def test_an_older_attempt_changes_nothing(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    await node.create("backup-1", incr, attempt=1)
    await node.delete("backup-1", attempt=2)
    await node.create("backup-2", incr, attempt=2)
    for call in (node.create("backup-9", incr, attempt=1), node.delete("backup-2", attempt=1)):
        with pytest.raises(RemoteError) as caught:
            await call
        assert (caught.value.kind, caught.value.reason) == (Kind.ABORTED, "STALE_ATTEMPT")
        assert caught.value.metadata["newest_attempt"] == "2"
    assert await listed(node.nbdd) == {"backup-2"}
    # also when a newer attempt only tried to delete what was not there
    await node.delete("never-made", job="job-7", attempt=5)
    with pytest.raises(RemoteError) as caught:
        await node.create("late", node.images / "vm-full.qcow2", job="job-7", attempt=4, read_only=True)
    assert caught.value.reason == "STALE_ATTEMPT"


async def test_a_name_that_was_served_is_never_served_again(node: Node) -> None:
    """Whoever still knows it, such as an agent of an older attempt, must not write into another layer."""
    incr = await overlay(node.images, "vm")
    await node.create("backup-1", incr)
    with pytest.raises(RemoteError) as caught:
        await node.delete("backup-1", job="job-2")
    assert (caught.value.reason, caught.value.metadata["holder"]) == ("EXPORT_HELD", "job-1")
    await node.delete("backup-1")
    for job, attempt in (("job-2", 1), ("job-1", 1), ("job-1", 2)):
        with pytest.raises(RemoteError) as caught:
            await node.create("backup-1", incr, job=job, attempt=attempt)
        assert caught.value.reason == "EXPORT_EXISTS"
    assert await listed(node.nbdd) == set()


async def test_a_name_that_could_not_be_served_may_be_asked_for_again_by_its_job_only(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    blocker = node.nbdd.conf("blocker", incr)  # a writer that only nbdd knows
    await node.nbdd.reload()
    with pytest.raises(RemoteError) as caught:
        await node.create("backup-1", incr)
    assert (caught.value.reason, caught.value.retryable) == ("IMAGE_BUSY", True)
    assert "written through the export blocker" in caught.value.message
    blocker.unlink()
    await node.nbdd.reload()
    with pytest.raises(RemoteError) as caught:
        await node.create("backup-1", incr, job="job-2")
    assert caught.value.reason == "EXPORT_EXISTS"
    assert (await node.create("backup-1", incr)).state == "serving"


async def test_a_second_writer_or_reader_of_a_written_image_is_refused_naming_the_holder(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    await node.create("backup-1", incr)
    for read_only in (False, True):
        with pytest.raises(RemoteError) as caught:
            await node.create("backup-2", incr, job="job-2", read_only=read_only)
        assert (caught.value.kind, caught.value.reason) == (Kind.FAILED_PRECONDITION, "IMAGE_BUSY")
        assert caught.value.metadata["holder"] == "job-1"
    full = node.images / "vm-full.qcow2"
    await node.create("mount-1", full, job="job-3", read_only=True)
    await node.create("mount-2", full, job="job-4", read_only=True)
    assert await listed(node.nbdd) == {"backup-1", "mount-1", "mount-2"}


async def test_an_image_that_another_process_writes_is_refused_and_taken_back(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    folder = node.settings.root
    other = await StorageDaemon.start(folder / "other.qmp", log_path=folder / "other.log", die_with_parent=True)
    try:
        chain = [incr, node.images / "vm-full.qcow2"]
        await other.add_node(qcow2_node("disk", chain, file_access(incr, other.aio), read_only=False))
        with pytest.raises(RemoteError) as caught:
            await node.create("backup-1", incr)
        assert (caught.value.reason, caught.value.retryable) == ("IMAGE_BUSY", True)
        assert "in use by another process" in caught.value.message
        assert node.nbdd.exports() == {}
    finally:
        await other.stop()
    assert (await node.create("backup-1", incr)).state == "serving"


async def test_what_may_not_be_served_is_refused_by_name_and_changes_nothing(node: Node) -> None:
    images = node.images
    noise(images / "noise.qcow2", MIB)
    (images / "line\nbreak.raw").write_bytes(bytes(MIB))
    (images / "empty.raw").touch()
    await img.create_qcow2(images.parent / "secret.qcow2", MIB)
    await img.create_qcow2(images / "escaping.qcow2", MIB, backing_name="../secret.qcow2")
    await node.create("good", await overlay(images, "vm"))
    for path, fmt, reason, problem in (
        ("/etc/passwd", "raw", "PATH_REFUSED", "outside of the folders"),
        ("relative.qcow2", "qcow2", "PATH_REFUSED", "absolute path"),
        (f"{images}/../x.qcow2", "qcow2", "PATH_REFUSED", "'..'"),
        (f"{images}/gone.qcow2", "qcow2", "PATH_REFUSED", "No such file"),
        (str(images), "raw", "PATH_REFUSED", "neither a file nor a block device"),
        ("/dev/null", "raw", "PATH_REFUSED", "neither a file nor a block device"),
        (f"{images}/noise.qcow2", "qcow2", "IMAGE_REFUSED", "no qcow2 image"),
        (f"{images}/escaping.qcow2", "qcow2", "IMAGE_REFUSED", "secret.qcow2 is outside"),
        (f"{images}/empty.raw", "raw", "IMAGE_REFUSED", "is empty"),
        (f"{images}/line\nbreak.raw", "raw", "PATH_REFUSED", "cannot hold"),
        (f"{images}/noise.qcow2", "vmdk", "INVALID_FIELD", "format"),
    ):
        with pytest.raises(RemoteError) as caught:
            await node.create("backup-1", path, fmt)
        assert (caught.value.kind, caught.value.reason) == (Kind.INVALID_ARGUMENT, reason), path
        assert problem in caught.value.message
    for name in ("../evil", "a/b", "", "x" * 64, "[x]", "-x", "a b", "ä"):
        with pytest.raises(RemoteError) as caught:
            await node.create(name, images / "vm-full.qcow2", read_only=True)
        assert caught.value.kind == Kind.INVALID_ARGUMENT, name
    assert [file.name for file in node.settings.conf_dir.iterdir()] == ["good.conf"]
    assert await listed(node.nbdd) == {"good"}


async def test_block_devices_are_served_from_the_allow_list_only(
    settings: ExportsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():  # noqa: ASYNC240
        pytest.skip("a loop device needs root and /dev/loop-control")
    monkeypatch.setenv("SENDENSE_EXPORTS_DEVICE_PATTERN", "/dev/loop[0-9]+")
    with loop_device(noise(settings.root / "device.raw", MIB)) as device:
        async with node_running(ExportsSettings()) as node:
            request = exports_pb2.CreateBlockExportRequest(
                export_name="migration-vm-1-disk0",
                device=device,
                holder=exports_pb2.Holder(job_id="migration-1", attempt=1),
            )
            export = await node.peer.call(node.stub.CreateBlockExport, request)
            assert (export.state, export.format, export.size_bytes, export.agent_id) == ("serving", "raw", MIB, "")
            await node.create("backup-1", await overlay(node.images, "vm"))
            assert await listed(node.nbdd) == {"migration-vm-1-disk0", "backup-1"}
            back = node.images / "back.raw"
            await nbdcopy(node.nbdd.uri("migration-vm-1-disk0"), back)
            assert back.read_bytes() == (settings.root / "device.raw").read_bytes()
            for other in ("/dev/null", str(back)):
                request.device = other
                with pytest.raises(RemoteError) as caught:
                    await node.peer.call(node.stub.CreateBlockExport, request)
                assert caught.value.reason == "PATH_REFUSED"
            with pytest.raises(RemoteError) as caught:
                await node.create("file-export-of-a-device", device, "raw")
            assert caught.value.reason == "PATH_REFUSED"
        monkeypatch.setenv("SENDENSE_EXPORTS_DEVICE_PATTERN", "/dev/vd[b-z]+")
        async with node_running(ExportsSettings()) as node:
            request.device, request.export_name = device, "another"
            with pytest.raises(RemoteError) as caught:
                await node.peer.call(node.stub.CreateBlockExport, request)
            assert caught.value.reason == "PATH_REFUSED"
            assert "not on the list" in caught.value.message
            # The one of before is not on the list any more: it is not served, and is not forgotten either.
            export = await node.get("migration-vm-1-disk0")
            assert (export.state, "not on the list" in export.error) == ("error", True)


async def test_a_busy_export_stays_unless_it_is_forced(node: Node) -> None:
    await node.create("backup-1", await overlay(node.images, "vm"))
    handle = nbd.NBD()
    handle.set_export_name("backup-1")
    await asyncio.to_thread(handle.connect_unix, str(node.settings.nbd_socket))
    with pytest.raises(RemoteError) as caught:
        await node.delete("backup-1")
    assert (caught.value.kind, caught.value.reason) == (Kind.FAILED_PRECONDITION, "EXPORT_BUSY")
    assert (await node.get("backup-1")).state == "serving"
    assert await asyncio.to_thread(handle.pread, 1, 0) == b"\1"
    await node.delete("backup-1", force=True)
    with pytest.raises(nbd.Error):
        await asyncio.to_thread(handle.pread, 1, 0)
    assert await listed(node.nbdd) == set()


@pytest.mark.faults
async def test_the_daemons_death_shows_as_a_new_epoch(node: Node) -> None:
    await node.create("backup-1", await overlay(node.images, "vm"))
    os.kill(node.nbdd.status().daemon_pid, signal.SIGKILL)
    await node.nbdd.wait(lambda status: status.daemon_starts == 2)
    export = await node.get("backup-1")
    assert (export.state, export.epoch) == ("serving", 2)


async def test_lists_are_paged_by_name_and_show_exports_made_by_hand(node: Node) -> None:
    (node.images / "disk.raw").write_bytes(bytes(MIB))
    for number in range(3):
        await node.create(f"e{number}", node.images / "disk.raw", "raw", read_only=True)
    node.nbdd.conf("by-hand", node.images / "disk.raw", "raw", read_only=True)
    async with caller(node.settings, "admin") as admin:
        stub = exports_pb2_grpc.ExportServiceStub(admin.channel)
        answer = await admin.call(stub.ReloadExports, exports_pb2.ReloadExportsRequest())
    assert answer.generation == node.nbdd.status().generation
    seen: list[str] = []
    token = ""
    while True:
        page = await node.peer.call(
            node.stub.ListExports, exports_pb2.ListExportsRequest(page_size=2, page_token=token)
        )
        seen += [export.export_name for export in page.exports]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["by-hand", "e0", "e1", "e2"]
    for bad in ({"page_size": -1}, {"page_token": "é"}):
        with pytest.raises(RemoteError) as caught:
            await node.peer.call(node.stub.ListExports, exports_pb2.ListExportsRequest(**bad))  # type: ignore[arg-type]
        assert caught.value.kind == Kind.INVALID_ARGUMENT


async def test_without_nbdd_a_create_says_so_and_changes_nothing(settings: ExportsSettings) -> None:
    images = settings.root / "backups"
    images.mkdir()
    incr = await overlay(images, "vm")
    async with service_running(settings) as peer:
        stub = exports_pb2_grpc.ExportServiceStub(peer.channel)
        request = exports_pb2.CreateFileExportRequest(
            export_name="x", path=str(incr), format="qcow2", holder=exports_pb2.Holder(job_id="j", attempt=1)
        )
        with pytest.raises(RemoteError) as caught:
            await peer.call(stub.CreateFileExport, request)
        assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "NBDD_DOWN")
        assert caught.value.retryable
    assert list(settings.conf_dir.iterdir()) == []
    async with catalogue(settings) as database, database.read() as connection:
        assert (await connection.execute(select(nbd_exports))).first() is None


async def test_a_service_that_starts_makes_conf_files_agree_with_the_catalogue(settings: ExportsSettings) -> None:
    async with nbdd_running(settings) as nbdd:
        images = settings.root / "backups"
        async with service_running(settings) as peer:
            node = Node(settings, nbdd, peer, images)
            await node.create("lives", await overlay(images, "one"))
            await node.create("removed", await overlay(images, "two"))
            text = (settings.conf_dir / "removed.conf").read_text()
            await node.delete("removed")
        (settings.conf_dir / "lives.conf").unlink()  # as if killed between the row and the file
        (settings.conf_dir / "removed.conf").write_text(text)
        nbdd.conf("by-hand", images / "one-full.qcow2", read_only=True)
        async with service_running(settings):
            assert await listed(nbdd) == {"lives", "by-hand"}


async def test_only_services_make_and_remove_exports(node: Node) -> None:
    incr = await overlay(node.images, "vm")
    await node.create("backup-1", incr)
    for role in ("viewer", "operator", "restore", "admin"):
        async with caller(node.settings, role) as person:
            other = Node(node.settings, node.nbdd, person, node.images)
            assert (await other.get("backup-1")).state == "serving"
            for call in (other.create("backup-2", incr), other.delete("backup-1", force=True)):
                with pytest.raises(RemoteError) as caught:
                    await call
                assert caught.value.kind == Kind.PERMISSION_DENIED
    assert await listed(node.nbdd) == {"backup-1"}
