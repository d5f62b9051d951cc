"""A running exports service with its real catalogue and a real nbdd, and callers of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nbdd_process import RunningNbdd, nbdd_running

from sendense.exports.v1 import exports_pb2, exports_pb2_grpc
from sendense_access.keys import SigningKey
from sendense_db.engine import Database
from sendense_exports.config import ExportsSettings
from sendense_exports.main import build
from sendense_exports.store import metadata
from sendense_rpc.channel import Peer, unix_peer
from support import serving

MIB = 1 << 20


@dataclass
class Node:
    """A running service with its nbdd."""

    settings: ExportsSettings
    nbdd: RunningNbdd
    peer: Peer
    images: Path

    @property
    def stub(self) -> exports_pb2_grpc.ExportServiceStub:
        return exports_pb2_grpc.ExportServiceStub(self.peer.channel)

    async def create(
        self,
        name: str,
        path: Path | str,
        fmt: str = "qcow2",
        *,
        job: str = "job-1",
        attempt: int = 1,
        read_only: bool = False,
    ) -> exports_pb2.Export:
        request = exports_pb2.CreateFileExportRequest(
            export_name=name,
            path=str(path),
            format=fmt,
            read_only=read_only,
            holder=exports_pb2.Holder(job_id=job, attempt=attempt),
            agent_id="agent-1",
        )
        return await self.peer.call(self.stub.CreateFileExport, request)

    async def delete(
        self, name: str, *, job: str = "job-1", attempt: int = 1, wait: int = 1, force: bool = False
    ) -> None:
        request = exports_pb2.DeleteExportRequest(
            export_name=name,
            holder=exports_pb2.Holder(job_id=job, attempt=attempt),
            wait_seconds=wait,
            force=force,
        )
        await self.peer.call(self.stub.DeleteExport, request)

    async def get(self, name: str) -> exports_pb2.Export:
        return await self.peer.call(self.stub.GetExport, exports_pb2.GetExportRequest(export_name=name))


@asynccontextmanager
async def service_running(settings: ExportsSettings) -> AsyncIterator[Peer]:
    async with build(settings) as service, serving(service, settings):
        peer = unix_peer(settings.socket("exports"), settings.identity_file("backup"))
        try:
            yield peer
        finally:
            await peer.close()


@asynccontextmanager
async def caller(settings: ExportsSettings, role: str) -> AsyncIterator[Peer]:
    """The service as a person of that role sees it."""
    token = settings.root / f"{role}.token"
    key = SigningKey.load_or_create(settings.root / "keys")
    token.write_text(key.sign(f"test-{role}", role, 60))
    peer = unix_peer(settings.socket("exports"), token)
    try:
        yield peer
    finally:
        await peer.close()


@asynccontextmanager
async def catalogue(settings: ExportsSettings) -> AsyncIterator[Database]:
    database = Database(settings.catalogue_url)
    try:
        yield database
    finally:
        await database.close()


async def prepared() -> ExportsSettings:
    """Settings of a home whose catalogue has the service's tables."""
    settings = ExportsSettings()
    async with catalogue(settings) as database, database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return settings


@asynccontextmanager
async def node_running(settings: ExportsSettings) -> AsyncIterator[Node]:
    async with nbdd_running(settings) as nbdd, service_running(settings) as peer:
        yield Node(settings, nbdd, peer, settings.root / "backups")
