"""The restore service on its real sockets, between hand-written backup and repository services."""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from restore_images import Images, Point

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense.repository.v1 import integrity_pb2, layer_pb2, point_pb2, point_pb2_grpc
from sendense.restore.v1 import disk_pb2_grpc, restore_pb2, restore_pb2_grpc
from sendense_access.keys import SigningKey
from sendense_db.engine import Database
from sendense_qemu.errors import HeaderError
from sendense_qemu.header import check_chain, read_header
from sendense_qemu.nodes import file_access, qcow2_node
from sendense_qemu.storage_daemon import StorageDaemon
from sendense_restore import loops, mount_table
from sendense_restore.config import RestoreSettings
from sendense_restore.guestfs_backend import GuestfsBackend
from sendense_restore.kernel_backend import KernelBackend
from sendense_restore.main import build
from sendense_restore.mounter import PointMounter
from sendense_restore.places import Places
from sendense_restore.store import MountStore, metadata
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.identity import current_caller
from sendense_rpc.server import Service, Servicer
from sendense_rpc.settings import ServiceSettings
from support import serving

_SINGLY = 12


async def _unused(_self: object, request: Any, context: Any) -> Any:
    raise SendenseError("the fake has no such call", kind=Kind.UNIMPLEMENTED, reason="FAKE")


class FakeBackups(backup_pb2_grpc.BackupServiceServicer):
    """Knows backups, by unique prefix, and their status."""

    StartBackup = ListBackups = DeleteBackup = GetChain = CancelBackup = ListLogEntries = WatchBackup = _unused

    def __init__(self, points: dict[str, Point]) -> None:
        self.points = points

    async def GetBackup(self, request: backup_pb2.GetBackupRequest, context: Any) -> backup_pb2.Backup:
        found = [p for p in self.points.values() if p.backup_id.startswith(request.backup_id)]
        if len(found) != 1:
            reason = "AMBIGUOUS_BACKUP_ID" if found else "BACKUP_NOT_FOUND"
            kind = Kind.INVALID_ARGUMENT if found else Kind.NOT_FOUND
            raise SendenseError(f"{len(found)} backups for {request.backup_id}", kind=kind, reason=reason)
        return backup_pb2.Backup(backup_id=found[0].backup_id, status=found[0].status)


def virtual_size(layer: Path) -> int:
    """What the repository noted when it sealed the layer; tampering came later."""
    try:
        return read_header(layer).virtual_size
    except HeaderError:
        return 16 << 20


class FakePoints(point_pb2_grpc.PointServiceServicer):
    """Knows restore points, and who holds a lease on them."""

    CommitPoint = GetLatestPoint = GetChains = DeletePoint = _unused

    def __init__(self, points: dict[str, Point]) -> None:
        self.points = points
        self.leases: dict[tuple[str, str], int] = {}
        self.callers: set[str] = set()

    async def GetPoint(self, request: point_pb2.GetPointRequest, context: Any) -> point_pb2.Point:
        assert any(backup_id == request.backup_id for backup_id, _ in self.leases), "read without a lease"
        point = next(p for p in self.points.values() if p.backup_id == request.backup_id)
        layers = [
            layer_pb2.Layer(disk_id=disk, path=str(path), state="sealed", virtual_size_bytes=virtual_size(path))
            for disk, path in point.layers.items()
        ]
        integrity = integrity_pb2.Integrity(state="corrupt" if point.damaged else "verified", suspicion=point.suspicion)
        return point_pb2.Point(backup_id=point.backup_id, layers=layers, integrity=integrity)

    async def LeasePoint(self, request: point_pb2.LeasePointRequest, context: Any) -> point_pb2.Lease:
        caller = current_caller()
        assert caller is not None
        self.callers.add(caller.subject)
        key = (request.backup_id, request.holder)
        self.leases[key] = self.leases.get(key, 0) + 1
        return point_pb2.Lease(backup_id=request.backup_id, holder=request.holder)

    async def ReleaseLease(self, request: point_pb2.ReleaseLeaseRequest, context: Any) -> Any:
        self.leases.pop((request.backup_id, request.holder), None)
        return point_pb2.ReleaseLeaseResponse()


class FakeExports(exports_pb2_grpc.ExportServiceServicer):
    """Serves files over NBD with a qemu-storage-daemon of its own, started when it is first wanted."""

    CreateBlockExport = GetExport = ReloadExports = _unused

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._daemon: StorageDaemon | None = None
        self.exports: dict[str, exports_pb2.Export] = {}

    async def CreateFileExport(self, request: exports_pb2.CreateFileExportRequest, context: Any) -> exports_pb2.Export:
        assert (request.format, request.read_only) == ("qcow2", True)
        if request.export_name not in self.exports:
            socket = self._run_dir / "nbd.sock"
            if self._daemon is None:
                self._daemon = await StorageDaemon.start(
                    self._run_dir / "nbd.qmp", log_path=self._run_dir / "nbd.log", die_with_parent=True
                )
                await self._daemon.serve_nbd(socket)
            node = f"n{len(self.exports)}"
            headers = check_chain(Path(request.path), [Path(request.path).parent])
            access = file_access(headers[0].path, self._daemon.aio)
            await self._daemon.add_node(qcow2_node(node, [h.path for h in headers], access, read_only=True))
            await self._daemon.add_nbd_export(node, node, request.export_name, writable=False)
            self.exports[request.export_name] = exports_pb2.Export(
                export_name=request.export_name,
                holder=request.holder.job_id,
                socket_path=str(socket),
                size_bytes=headers[0].virtual_size,
                epoch=len(self.exports),
            )
        return self.exports[request.export_name]

    async def ListExports(self, request: Any, context: Any) -> exports_pb2.ListExportsResponse:
        return exports_pb2.ListExportsResponse(exports=list(self.exports.values()))

    async def DeleteExport(self, request: exports_pb2.DeleteExportRequest, context: Any) -> Any:
        export = self.exports.pop(request.export_name, None)
        if export is not None and self._daemon is not None:
            assert export.holder == request.holder.job_id
            await self._daemon.remove_export(f"n{export.epoch}", mode="hard")
        return exports_pb2.DeleteExportResponse()

    async def close(self) -> None:
        if self._daemon is not None:
            await self._daemon.stop()


class World:
    """What a test talks to."""

    def __init__(self, settings: RestoreSettings, images: Images) -> None:
        self.settings = settings
        self.images = images
        self.fake_backups = FakeBackups(images.points)
        self.fake_points = FakePoints(images.points)
        self.peer: Peer = unix_peer(settings.socket("restore"), settings.identity_file("gateway"))
        self.fake_exports = FakeExports(settings.run_dir)
        self.stub = restore_pb2_grpc.RestoreServiceStub(self.peer.channel)
        self.disks = disk_pb2_grpc.DiskServiceStub(self.peer.channel)
        self.http = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(settings.http_socket)))

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        await self.peer.close()

    async def mount(self, name: str, request_id: str = "", **wish: Any) -> restore_pb2.Mount:
        request = restore_pb2.MountBackupRequest(
            backup_id=self.images.points[name].backup_id, mode="read-only", request_id=request_id, **wish
        )
        mount = await self.peer.call(self.stub.MountBackup, request, timeout=120)
        async with asyncio.timeout(300):  # an emulated micro-VM on a busy machine
            while mount.state == "mounting":
                await asyncio.sleep(0.2)
                mount = await self.peer.call(self.stub.GetMount, restore_pb2.GetMountRequest(mount_id=mount.mount_id))
        return mount

    async def unmount(self, mount_id: str, *, force: bool = False) -> None:
        request = restore_pb2.UnmountBackupRequest(mount_id=mount_id, force=force)
        await self.peer.call(self.stub.UnmountBackup, request, timeout=60)

    async def mounts(self) -> list[restore_pb2.Mount]:
        answer = await self.peer.call(self.stub.ListMounts, restore_pb2.ListMountsRequest())
        return list(answer.mounts)

    async def page(self, mount_id: str, path: str, size: int = 0, token: str = "") -> restore_pb2.ListFilesResponse:
        request = restore_pb2.ListFilesRequest(mount_id=mount_id, path=path, page_size=size, page_token=token)
        return await self.peer.call(self.stub.ListFiles, request)

    async def entries(self, mount_id: str, path: str) -> dict[str, restore_pb2.FileEntry]:
        return {entry.name: entry for entry in (await self.page(mount_id, path, 1000)).entries}

    def url(self, mount_id: str) -> str:
        return f"http://localhost/api/v1/restore/{mount_id}/download"

    def headers(self, role: str = "restore") -> dict[str, str]:
        key = SigningKey.load_or_create(self.settings.root / "keys")
        return {"Authorization": f"Bearer {key.sign('ann', role, 600)}"}

    def get(self, mount_id: str, path: str, method: str = "GET", **headers: str) -> Any:
        return self.http.request(method, self.url(mount_id), params={"path": path}, headers=self.headers() | headers)

    async def download(self, mount_id: str, path: str) -> bytes:
        async with self.get(mount_id, path) as response:
            body = await response.read()
            assert response.status == 200, body
            return body

    async def assert_files(self, mount_id: str, name: str) -> None:
        """All files at once in a tar where there are many, and each of some by itself."""
        point = self.images.points[name]
        paths = sorted(point.files)
        if len(paths) > _SINGLY:
            tar = io.BytesIO(await self.download(mount_id, "/"))
            with tarfile.open(fileobj=tar, encoding="utf-8", errors="surrogateescape") as archive:
                for path in paths:
                    file = archive.extractfile(f".{path}")
                    assert file is not None, path
                    assert file.read() == point.files[path], path
            paths = random.Random(name).sample(paths, _SINGLY)
        for path in paths:
            assert await self.download(mount_id, path.replace("\\", "\\\\")) == point.files[path], path
        for path in point.gone:
            async with self.get(mount_id, path) as response:
                assert response.status == 404, path


def _is_ours(entry: mount_table.MountEntry, home: Path) -> bool:
    return entry.path != home and entry.file_system != "tmpfs"  # which is a test's, to be full


def left_on_host(home: Path) -> list[str]:
    """Mounts, loop devices, processes and files of mounts below a state directory."""
    left = [f"mount {entry.path}" for entry in mount_table.mounts_below(home) if _is_ours(entry, home)]
    left += [f"loop {device}" for device in loops.attached_below(home)]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(home) in command and b"/nbd.qmp" not in command:  # FakeExports' is not the service's
                left.append(f"process {process.name} {command!r}")
    for directory in (home / "restore", home / "mnt"):
        left += [f"file {path}" for path in directory.glob("*") if path.name != "exports"]
    left += [f"file {path}" for path in (home / "restore" / "exports").glob("*")]
    return left + [f"socket {path}" for path in (home / "run").glob("restore-*.qmp")]


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Waits until something is so; fails when it does not become so in time."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def create_tables(settings: ServiceSettings) -> None:
    database = Database(settings.catalogue_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await database.close()


async def rows(settings: ServiceSettings) -> list[str]:
    database = Database(settings.catalogue_url)
    found = [row.mount_id for row in await MountStore(database).all()]
    await database.close()
    return found


async def _healthy() -> None:
    return None


@asynccontextmanager
async def neighbours(world: World) -> AsyncIterator[None]:
    """Runs the fake backup and repository services."""
    backups = Servicer(
        "sendense.backup.v1.BackupService", world.fake_backups, backup_pb2_grpc.add_BackupServiceServicer_to_server
    )
    points = Servicer(
        "sendense.repository.v1.PointService", world.fake_points, point_pb2_grpc.add_PointServiceServicer_to_server
    )
    exports = Servicer(
        "sendense.exports.v1.ExportService", world.fake_exports, exports_pb2_grpc.add_ExportServiceServicer_to_server
    )
    async with (
        serving(Service("backup", [backups], _healthy), world.settings),
        serving(Service("repository", [points], _healthy), world.settings),
        serving(Service("exports", [exports], _healthy), world.settings),
    ):
        try:
            yield
        finally:
            await world.fake_exports.close()


@asynccontextmanager
async def restore_world(images: Images, **changes: Any) -> AsyncIterator[World]:
    """The whole world, with the restore service in this process; nothing may be left of it at the end."""
    settings = RestoreSettings(**changes)
    await create_tables(settings)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World(settings, images))
        await stack.enter_async_context(neighbours(world))
        service = await stack.enter_async_context(build(settings))
        await stack.enter_async_context(serving(service, settings))
        yield world
    assert left_on_host(settings.root) == []
    assert world.fake_points.leases == {}
    assert await rows(settings) == []


@asynccontextmanager
async def processes(settings: RestoreSettings) -> AsyncIterator[Processes]:
    """Starts the service in processes of its own; a test that fails leaves nothing behind either."""
    started = Processes(settings)
    try:
        yield started
    finally:
        for process in started.all:
            if process.returncode is None:
                process.kill()
            await process.communicate()
        with Places(settings.work_root, settings.base, settings.run_dir).owned() as places:
            mounter = PointMounter([KernelBackend(60), GuestfsBackend(60, "emulate")], "auto")
            for place in places.left():
                await mounter.unmount(place)


class Processes:
    """Restore services as an operator starts them."""

    def __init__(self, settings: RestoreSettings) -> None:
        self._settings = settings
        self.all: list[asyncio.subprocess.Process] = []

    async def start(self) -> asyncio.subprocess.Process:
        """Starts one; ready when its socket is there."""
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "sendense-restore",
            env={**os.environ, "SENDENSE_HOME": str(self._settings.root)},
            stderr=asyncio.subprocess.PIPE,
        )
        self.all.append(process)
        await said(process, "serving")
        return process


async def said(process: asyncio.subprocess.Process, word: str) -> None:
    """Waits until the process has logged a word."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while word.encode() not in (line := await process.stderr.readline()):
            assert line, f"the service ended without a word of {word}"
