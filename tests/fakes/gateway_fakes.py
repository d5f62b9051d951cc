"""Hand-written stand-ins of the services behind the gateway: they record what arrives and answer what they are told."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

import sendense
from sendense.backup.v1 import backup_pb2
from sendense.exports.v1 import exports_pb2
from sendense.repository.v1 import repository_pb2
from sendense.restore.v1 import restore_pb2
from sendense_gateway.contract import Contract, packaged
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.server import Service, Servicer, listening
from sendense_rpc.settings import ServiceSettings
from support import serving

CONTENT = bytes(range(256)) * 40


class Seen:
    """What arrived: the RPC's name, its request, the call's metadata."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Message, dict[str, str]]] = []
        self.downloads: list[tuple[str, dict[str, str]]] = []

    def last(self) -> tuple[str, Message]:
        name, request, _ = self.calls[-1]
        return name, request


def recorder(base: type, full_name: str, seen: Seen, answers: dict[str, Any]) -> Any:
    """Returns a servicer of `base` whose RPCs record the call and give the answer of their name, else an empty one."""

    def single(name: str, method: MethodDescriptor) -> Any:
        async def call(self: Any, request: Message, context: Any) -> Any:
            seen.calls.append((name, request, dict(context.invocation_metadata())))
            answer = answers.get(name) or message_factory.GetMessageClass(method.output_type)()
            return answer(request) if callable(answer) else answer

        return call

    def streaming(name: str, method: MethodDescriptor) -> Any:
        async def call(self: Any, request: Message, context: Any) -> AsyncIterator[Any]:
            seen.calls.append((name, request, dict(context.invocation_metadata())))
            for answer in answers[name](request) if name in answers else ():
                yield answer
                await asyncio.sleep(0.01)

        return call

    descriptor = descriptor_pool.Default().FindServiceByName(full_name)
    own = {
        method.name: (streaming if method.server_streaming else single)(method.name, method)
        for method in descriptor.methods
    }
    return type(f"Fake{base.__name__}", (base,), own)()


def get_backup(request: backup_pb2.GetBackupRequest) -> backup_pb2.Backup:
    if request.backup_id == "nothing":
        raise SendenseError(
            'no backup "nothing" {or so}, \\ "reason":"WRONG" ü',
            kind=Kind.NOT_FOUND,
            reason="BACKUP_NOT_FOUND",
            help='List the backups with "sendense-ctl backup list".',
            metadata={"backup_id": "nothing"},
        )
    if request.backup_id == "bug":
        raise ZeroDivisionError
    return backup_pb2.Backup(backup_id=request.backup_id, status="running", bytes_transferred=1 << 40)


def watch(request: backup_pb2.WatchBackupRequest) -> list[backup_pb2.Backup]:
    if request.backup_id == "nothing":
        raise SendenseError("no such backup", kind=Kind.NOT_FOUND, reason="BACKUP_NOT_FOUND", help="List them.")
    return [backup_pb2.Backup(backup_id=request.backup_id, status=status) for status in ("running", "completed")]


def list_files(request: restore_pb2.ListFilesRequest) -> restore_pb2.ListFilesResponse:
    entries = [restore_pb2.FileEntry(name="x" * 4000, type="file")] * request.page_size
    return restore_pb2.ListFilesResponse(path=request.path, entries=entries)


BACKUP = backup_pb2.Backup(backup_id="backup-pgtest2-20251004120000", vm_name="pgtest2", status="pending")

ANSWERS: dict[str, Any] = {
    "StartBackup": BACKUP,
    "ListBackups": backup_pb2.ListBackupsResponse(backups=[BACKUP]),
    "GetBackup": get_backup,
    "DeleteBackup": backup_pb2.DeleteBackupResponse(),
    "GetChain": backup_pb2.GetChainResponse(vm_name="pgtest2"),
    "CancelBackup": BACKUP,
    "ListLogEntries": backup_pb2.ListLogEntriesResponse(),
    "WatchBackup": watch,
    "ListVms": backup_pb2.ListVmsResponse(),
    "ListRepositories": repository_pb2.ListRepositoriesResponse(),
    "GetRepository": repository_pb2.Repository(),
    "CreateRepository": repository_pb2.Repository(),
    "MountBackup": restore_pb2.Mount(mount_id="mount-1", mount_path="/mnt/sendense/mount-1"),
    "ListMounts": restore_pb2.ListMountsResponse(),
    "GetMount": restore_pb2.Mount(mount_id="mount-1"),
    "ListFiles": lambda request: restore_pb2.ListFilesResponse(
        path=request.path,
        entries=[restore_pb2.FileEntry(name="x" * 4000, type="file") for _ in range(request.page_size)],
    ),
    "ListExports": exports_pb2.ListExportsResponse(),
    "GetExport": exports_pb2.Export(),
    "ReloadExports": exports_pb2.ReloadExportsResponse(),
    "UnmountBackup": restore_pb2.UnmountBackupResponse(),
}


async def nothing_wrong() -> None:
    return None


def services(seen: Seen) -> dict[str, Service]:
    """Returns a fake of each service that the gateway routes to, but access, by its short name."""
    contract = Contract.load(packaged("descriptor.binpb"))
    offered: dict[str, list[Servicer]] = {}
    for full_name in sorted({rpc.service for rpc in contract.public if rpc.owner != "access"}):
        owner, name = full_name.split(".")[1], full_name.rpartition(".")[2]
        fake = recorder(_generated(owner, f"{name}Servicer"), full_name, seen, ANSWERS)
        register = _generated(owner, f"add_{name}Servicer_to_server")
        offered.setdefault(owner, []).append(Servicer(full_name, fake, register))
    return {name: Service(name, servicers, nothing_wrong) for name, servicers in offered.items()}


def _generated(area: str, name: str) -> Any:
    for root in sendense.__path__:
        for file in Path(root, area, "v1").glob("*_pb2_grpc.py"):
            module = importlib.import_module(f"sendense.{area}.v1.{file.stem}")
            if hasattr(module, name):
                return getattr(module, name)
    raise LookupError(name)


@asynccontextmanager
async def downloads(settings: ServiceSettings, seen: Seen) -> AsyncIterator[None]:
    """The restore service's plain HTTP, as it promises: lengths, ranges, its own errors."""

    async def download(request: web.Request) -> web.Response:
        seen.downloads.append((request.path_qs, dict(request.headers)))
        span = request.http_range
        if span.start is not None:
            part = CONTENT[span]
            headers = {"Content-Range": f"bytes {span.start}-{span.start + len(part) - 1}/{len(CONTENT)}"}
            return web.Response(status=206, body=part, headers=headers)
        return web.Response(body=CONTENT, headers={"ETag": '"1"'})

    application = web.Application()
    application.router.add_get("/api/v1/restore/{mount_id}/download", download)
    runner = web.AppRunner(application)
    await runner.setup()
    socket = settings.run_dir / "restore-http.sock"
    try:
        with listening(socket):
            await web.UnixSite(runner, str(socket)).start()
            yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def running(settings: ServiceSettings, seen: Seen) -> AsyncIterator[None]:
    """Runs all fakes but exports on their sockets."""
    async with AsyncExitStack() as stack:
        for name, service in services(seen).items():
            if name != "exports":
                await stack.enter_async_context(serving(service, settings))
        await stack.enter_async_context(downloads(settings, seen))
        yield
