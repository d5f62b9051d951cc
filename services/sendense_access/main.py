"""Process `sendense-access`: wires the service and serves it on run/access.sock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sendense.access.v1 import access_pb2_grpc
from sendense_access.agents import AgentRegistry
from sendense_access.config import AccessSettings
from sendense_access.keys import SigningKey
from sendense_access.public_api import public_services
from sendense_access.servicer import AccessServicer, AgentRegistryServicer
from sendense_access.store import AccessStore
from sendense_access.tokens import TokenIssuer
from sendense_db.engine import Database
from sendense_rpc.server import Service, Servicer, run


@asynccontextmanager
async def build(settings: AccessSettings) -> AsyncIterator[Service]:
    """Opens the catalogue and the key, makes what a first start needs, and yields the service."""
    key = SigningKey.load_or_create(settings.keys_dir)
    database = Database(settings.catalogue_url)
    try:
        store = AccessStore(database)
        tokens = TokenIssuer(store, key, settings.revoked_file)
        await tokens.write_revoked()
        await tokens.ensure_administrator(settings.admin_token_file, settings.admin_token_lifetime_seconds)
        yield Service(
            name="access",
            servicers=(
                Servicer(
                    "sendense.access.v1.AccessService",
                    AccessServicer(tokens),
                    access_pb2_grpc.add_AccessServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.access.v1.AgentRegistryService",
                    AgentRegistryServicer(AgentRegistry(store)),
                    access_pb2_grpc.add_AgentRegistryServiceServicer_to_server,
                ),
            ),
            check=store.check,
            reflect=public_services(),
        )
    finally:
        await database.close()


def main() -> None:
    """Runs the service until SIGTERM."""
    settings = AccessSettings()
    run(lambda: build(settings), settings, "access")


if __name__ == "__main__":
    main()
