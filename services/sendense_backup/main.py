"""The backup service's process: reads the settings, wires the parts, serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from sendense.backup.v1 import backup_pb2_grpc, import_pb2_grpc, job_pb2_grpc, policy_pb2_grpc
from sendense_backup.backups import Backups
from sendense_backup.clients.agents import Agents
from sendense_backup.clients.exports import ExportsClient
from sendense_backup.clients.maintenance import MaintenanceClient
from sendense_backup.clients.rebuild import RebuildClient
from sendense_backup.clients.repository import RepositoryClient
from sendense_backup.config import BackupSettings
from sendense_backup.import_points import Importer
from sendense_backup.import_servicer import ImportServicer
from sendense_backup.job_servicer import JobServicer
from sendense_backup.jobs import Jobs
from sendense_backup.metrics import Metrics
from sendense_backup.policies import Policies
from sendense_backup.policy_servicer import PolicyServicer
from sendense_backup.scheduler import Scheduler
from sendense_backup.servicer import BackupServicer, VmServicer
from sendense_backup.store import Catalogue
from sendense_backup.store.tables import requests
from sendense_backup.workflows.caretaker import Caretaker
from sendense_backup.workflows.doorkeeper import Doorkeeper
from sendense_backup.workflows.engine import Engine
from sendense_backup.workflows.runtime import Observer, Runtime
from sendense_db.requests import RequestLedger
from sendense_rpc.channel import Peer, service_peer, unix_peer
from sendense_rpc.relay import TO as RELAY_TO
from sendense_rpc.server import Service, Servicer, run

NAME = "backup"


@asynccontextmanager
async def build(settings: BackupSettings, observer: Observer | None = None) -> AsyncIterator[Service]:
    """Opens what the service needs; on leaving, running jobs are stopped as they are and go on at the next start.

    Args:
        settings: The service's settings.
        observer: Sees the steps pass; for tests.
    """
    async with AsyncExitStack() as stack:

        def peer(service: str) -> Peer:
            opened = service_peer(settings, service, NAME)
            stack.push_async_callback(opened.close)
            return opened

        def reach(agent_id: str, socket: Path) -> Peer:
            if "tunnel" in settings.peers:
                return service_peer(settings, "tunnel", NAME, ((RELAY_TO, agent_id),))
            return unix_peer(socket, settings.identity_file(NAME))

        catalogue = Catalogue(settings.catalogue_url)
        stack.push_async_callback(catalogue.close)
        agents = Agents(peer("tunnel"), reach, await catalogue.installation_id())
        stack.push_async_callback(agents.close)
        repository_peer = peer("repository")
        runtime = Runtime(
            catalogue=catalogue,
            agents=agents,
            repository=RepositoryClient(repository_peer),
            maintenance=MaintenanceClient(repository_peer),
            exports=ExportsClient(peer("exports")),
            settings=settings,
            observer=observer or Observer(),
        )
        engine = Engine(runtime)
        await stack.enter_async_context(engine)
        await stack.enter_async_context(Doorkeeper(runtime, engine))
        await stack.enter_async_context(Caretaker(runtime, engine))
        scheduler = await stack.enter_async_context(Scheduler(runtime))
        backups, jobs = Backups(runtime), Jobs(runtime)
        yield Service(
            name=NAME,
            servicers=[
                Servicer(
                    "sendense.backup.v1.BackupService",
                    BackupServicer(backups, jobs),
                    backup_pb2_grpc.add_BackupServiceServicer_to_server,
                    own_repeats=frozenset({"StartBackup"}),
                ),
                Servicer(
                    "sendense.backup.v1.JobService",
                    JobServicer(jobs),
                    job_pb2_grpc.add_JobServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.backup.v1.PolicyService",
                    PolicyServicer(Policies(runtime)),
                    policy_pb2_grpc.add_PolicyServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.backup.v1.ImportService",
                    ImportServicer(Importer(catalogue, runtime.repository, RebuildClient(repository_peer))),
                    import_pb2_grpc.add_ImportServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.backup.v1.VmService",
                    VmServicer(backups),
                    backup_pb2_grpc.add_VmServiceServicer_to_server,
                ),
            ],
            check=catalogue.database.check,
            metrics=Metrics(runtime, scheduler).refresh,
            requests=RequestLedger(catalogue.database, requests),
        )


def main() -> None:
    """Runs the service until it is told to stop."""
    settings = BackupSettings()
    run(lambda: build(settings), settings, NAME)


if __name__ == "__main__":
    main()
