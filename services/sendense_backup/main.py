"""The backup service's process: reads the settings, wires the parts, serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sendense.backup.v1 import backup_pb2_grpc
from sendense_backup.backups import Backups
from sendense_backup.clients.agents import Agents
from sendense_backup.clients.exports import ExportsClient
from sendense_backup.clients.repository import RepositoryClient
from sendense_backup.config import BackupSettings
from sendense_backup.servicer import BackupServicer, VmServicer
from sendense_backup.store import Catalogue
from sendense_backup.workflows.engine import Engine
from sendense_backup.workflows.runtime import Observer, Runtime
from sendense_backup.workflows.sweep import Sweeper
from sendense_db.engine import Database
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.server import Service, Servicer, run

NAME = "backup"


@asynccontextmanager
async def build(settings: BackupSettings, observer: Observer | None = None) -> AsyncIterator[Service]:
    """Opens what the service needs; on leaving, running jobs are stopped as they are and go on at the next start.

    Args:
        settings: The service's settings.
        observer: Sees the steps pass; for tests.
    """
    identity = settings.identity_file(NAME)

    def peer(service: str) -> Peer:
        return unix_peer(settings.socket(service), identity)

    peers = {service: peer(service) for service in ("tunnel", "repository", "exports")}
    database = Database(settings.catalogue_url)
    catalogue = Catalogue(database)
    agents = Agents(peers["tunnel"], identity, await catalogue.installation_id())
    repository = RepositoryClient(peers["repository"])
    runtime = Runtime(
        catalogue=catalogue,
        agents=agents,
        repository=repository,
        exports=ExportsClient(peers["exports"]),
        settings=settings,
        observer=observer or Observer(),
    )
    engine = Engine(runtime)
    await engine.start()
    sweeper = asyncio.create_task(Sweeper(runtime, engine).run())
    backups = Backups(catalogue, agents, repository, engine, settings.default_repository)
    try:
        yield Service(
            name=NAME,
            servicers=[
                Servicer(
                    "sendense.backup.v1.BackupService",
                    BackupServicer(backups),
                    backup_pb2_grpc.add_BackupServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.backup.v1.VmService",
                    VmServicer(backups),
                    backup_pb2_grpc.add_VmServiceServicer_to_server,
                ),
            ],
            check=database.check,
        )
    finally:
        sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await sweeper
        await engine.stop()
        await agents.close()
        for each in peers.values():
            await each.close()
        await database.close()


def main() -> None:
    """Runs the service until it is told to stop."""
    settings = BackupSettings()
    run(lambda: build(settings), settings, NAME)


if __name__ == "__main__":
    main()
