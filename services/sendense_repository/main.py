"""The repository service's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from sendense.repository.v1 import (
    audit_pb2_grpc,
    layer_pb2_grpc,
    maintenance_pb2_grpc,
    point_pb2_grpc,
    repository_pb2_grpc,
)
from sendense_db.engine import Database
from sendense_db.requests import RequestLedger
from sendense_repository.audit_servicer import AuditServicer
from sendense_repository.config import RepositorySettings
from sendense_repository.maintenance_servicer import MaintenanceServicer
from sendense_repository.repositories import Repositories
from sendense_repository.servicer import LayerServicer, PointServicer, RepositoryServicer
from sendense_repository.store.tables import requests
from sendense_repository.unbroken import Unbroken
from sendense_repository.upkeep import build_upkeep
from sendense_repository.upkeep_servicer import upkeep_servicers
from sendense_repository.wiring import build_parts
from sendense_rpc.server import Service, Servicer, run

NAME = "repository"


@asynccontextmanager
async def build(settings: RepositorySettings) -> AsyncIterator[Service]:
    """Opens the catalogue and the repositories, and yields the service."""
    database = Database(settings.catalogue_url)
    unbroken = Unbroken()
    parts = build_parts(database, settings.reserve_bytes, settings.work_dir)
    upkeep = build_upkeep(parts, settings.verify_bytes_per_second)
    try:
        await parts.start(settings.local_root)
        await upkeep.start()
        yield Service(
            name=NAME,
            servicers=[
                Servicer(
                    "sendense.repository.v1.RepositoryService",
                    RepositoryServicer(parts.registry, upkeep.administration, upkeep.scanner, unbroken),
                    repository_pb2_grpc.add_RepositoryServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.repository.v1.LayerService",
                    LayerServicer(Repositories(parts), unbroken),
                    layer_pb2_grpc.add_LayerServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.repository.v1.PointService",
                    PointServicer(
                        parts.points, parts.chains, parts.deleter, parts.operations, upkeep.integrity, unbroken
                    ),
                    point_pb2_grpc.add_PointServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.repository.v1.MaintenanceService",
                    MaintenanceServicer(parts.deleter, parts.operations, unbroken),
                    maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.repository.v1.AuditService",
                    AuditServicer(parts.audits, unbroken),
                    audit_pb2_grpc.add_AuditServiceServicer_to_server,
                ),
                *upkeep_servicers(upkeep, parts, unbroken),
            ],
            check=parts.check,
            requests=RequestLedger(database, requests),
        )
    finally:
        await upkeep.stop()
        await parts.operations.stop()
        await unbroken.drain()
        parts.journals.close_all()
        await database.close()


def main() -> None:
    """Runs the service until it is told to stop."""
    settings = RepositorySettings()
    run(partial(build, settings), settings, NAME)


if __name__ == "__main__":
    main()
