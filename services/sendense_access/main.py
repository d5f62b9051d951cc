"""Process `sendense-access`: wires the service and serves it on run/access.sock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sendense.access.v1 import access_pb2_grpc, audit_pb2_grpc, enrollment_pb2_grpc
from sendense_access.agents import AgentRegistry
from sendense_access.audit_desk import AuditDesk
from sendense_access.clients import TunnelClient
from sendense_access.config import AccessSettings
from sendense_access.enrollment import EnrollmentDesk
from sendense_access.enrollment_servicer import EnrollmentServicer
from sendense_access.explain import Explainer
from sendense_access.keys import SigningKey
from sendense_access.oidc import fetch_in_background
from sendense_access.public_api import all_methods, public_services
from sendense_access.servicer import AccessServicer, AgentRegistryServicer, AuditServicer
from sendense_access.store import AccessStore, AuditStore, EnrollmentStore
from sendense_access.tokens import TokenIssuer
from sendense_db.engine import Database
from sendense_rpc.channel import service_peer
from sendense_rpc.server import Service, Servicer, run


@asynccontextmanager
async def build(settings: AccessSettings) -> AsyncIterator[Service]:
    """Opens the catalogue and the key, makes what a first start needs, and yields the service."""
    key = SigningKey.load_or_create(settings.keys_dir)
    database = Database(settings.catalogue_url)
    fetching = None
    tunnel = TunnelClient(service_peer(settings, "tunnel", "access"))
    try:
        store = AccessStore(database)
        registry = AgentRegistry(store, tunnel.disconnect)
        enrollments = EnrollmentDesk(store, EnrollmentStore(database), registry, tunnel.describe, key.jwks_json())
        tokens = TokenIssuer(store, key, settings.revoked_file)
        desk = AuditDesk(AuditStore(database), key, settings.audit_head_file)
        await tokens.write_revoked()
        await tokens.ensure_administrator(settings.admin_token_file, settings.admin_token_lifetime_seconds)
        await desk.keep_head()
        fetching = fetch_in_background(settings.oidc_jwks_url, settings.oidc_jwks_file)
        yield Service(
            name="access",
            servicers=(
                Servicer(
                    "sendense.access.v1.AccessService",
                    AccessServicer(tokens, Explainer(all_methods(), tokens), key),
                    access_pb2_grpc.add_AccessServiceServicer_to_server,
                    # A kept answer would be a kept token: the same request is signed again instead.
                    own_repeats=frozenset({"CreateToken"}),
                ),
                Servicer(
                    "sendense.access.v1.AuditService",
                    AuditServicer(desk),
                    audit_pb2_grpc.add_AuditServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.access.v1.AgentRegistryService",
                    AgentRegistryServicer(registry),
                    access_pb2_grpc.add_AgentRegistryServiceServicer_to_server,
                ),
                Servicer(
                    "sendense.access.v1.EnrollmentService",
                    EnrollmentServicer(enrollments),
                    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server,
                    # A kept answer would be a kept code: a new one is made in its place instead.
                    own_repeats=frozenset({"CreateEnrollment"}),
                ),
            ),
            check=store.check,
            reflect=public_services(),
            requests=store.ledger,
            audit=desk,
        )
    finally:
        if fetching:
            fetching.cancel()
        await tunnel.close()
        await database.close()


def main() -> None:
    """Runs the service until SIGTERM."""
    settings = AccessSettings()
    run(lambda: build(settings), settings, "access")


if __name__ == "__main__":
    main()
