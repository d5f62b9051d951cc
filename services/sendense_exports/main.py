"""Process `sendense-exports`: wires the service and serves it on run/exports.sock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sendense.exports.v1 import exports_pb2_grpc
from sendense_db.engine import Database
from sendense_db.requests import RequestLedger
from sendense_exports.catalogue import Catalogue
from sendense_exports.clients import Repositories
from sendense_exports.config import ExportsSettings
from sendense_exports.layout import ensure_layout
from sendense_exports.nbdd_link import NbddLink
from sendense_exports.roots import Roots
from sendense_exports.servicer import ExportServicer
from sendense_exports.store import ExportStore, requests
from sendense_exports.sweeper import sweeping
from sendense_rpc.channel import service_peer
from sendense_rpc.server import Service, Servicer, run


@asynccontextmanager
async def build(settings: ExportsSettings) -> AsyncIterator[Service]:
    """Opens the catalogue, makes conf files agree with it, and yields the service."""
    await asyncio.to_thread(ensure_layout, settings)
    database = Database(settings.catalogue_url)
    repository = service_peer(settings, "repository", "exports")
    try:
        catalogue = Catalogue(
            ExportStore(database),
            NbddLink(settings),
            Roots(settings, Repositories(repository).directories),
            settings.nbd_socket,
            timedelta(seconds=settings.lease_seconds),
        )
        await catalogue.recover()
        async with sweeping(catalogue, settings.sweep_seconds):
            yield Service(
                name="exports",
                servicers=(
                    Servicer(
                        "sendense.exports.v1.ExportService",
                        ExportServicer(catalogue),
                        exports_pb2_grpc.add_ExportServiceServicer_to_server,
                    ),
                ),
                check=catalogue.check,
                requests=RequestLedger(database, requests),
            )
    finally:
        await repository.close()
        await database.close()


def main() -> None:
    """Runs the service until SIGTERM."""
    settings = ExportsSettings()
    run(lambda: build(settings), settings, "exports")


if __name__ == "__main__":
    main()
