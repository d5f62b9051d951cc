"""Serves the fakes on the Unix sockets where the backup service looks for the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from backup_world import AGENT, World
from fake_agent import FakeAgent, FakeTunnel
from fake_audits import FakeAudits
from fake_exports import FakeExports
from fake_maintenance import FakeMaintenance, FakeRetention, FakeVerification
from fake_repository import FakeLayers, FakePoints, FakeRepositories

from sendense.agent.v1 import agent_pb2_grpc
from sendense.exports.v1 import exports_pb2_grpc
from sendense.repository.v1 import (
    audit_pb2_grpc,
    layer_pb2_grpc,
    maintenance_pb2_grpc,
    point_pb2_grpc,
    repository_pb2_grpc,
    retention_pb2_grpc,
    verification_pb2_grpc,
)
from sendense.tunnel.v1 import tunnel_pb2_grpc
from sendense_rpc.server import Service, Servicer
from sendense_rpc.settings import ServiceSettings
from support import serving


@asynccontextmanager
async def world_serving(settings: ServiceSettings) -> AsyncIterator[World]:
    """Serves the fakes on the Unix sockets where the backup service looks for the real ones."""
    world = World()

    async def fine() -> None:
        return None

    def service(name: str, *servicers: tuple[str, Any, Any]) -> Service:
        return Service(name, [Servicer(*each) for each in servicers], fine)

    services = [
        service(
            "tunnel",
            (
                "sendense.tunnel.v1.TunnelService",
                FakeTunnel(world, settings),
                tunnel_pb2_grpc.add_TunnelServiceServicer_to_server,
            ),
        ),
        service(
            f"agents/{AGENT}",
            (
                "sendense.agent.v1.AgentService",
                FakeAgent(world),
                agent_pb2_grpc.add_AgentServiceServicer_to_server,
            ),
        ),
        service(
            "exports",
            (
                "sendense.exports.v1.ExportService",
                FakeExports(world),
                exports_pb2_grpc.add_ExportServiceServicer_to_server,
            ),
        ),
        service(
            "repository",
            (
                "sendense.repository.v1.RepositoryService",
                FakeRepositories(world),
                repository_pb2_grpc.add_RepositoryServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.LayerService",
                FakeLayers(world),
                layer_pb2_grpc.add_LayerServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.PointService",
                FakePoints(world),
                point_pb2_grpc.add_PointServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.AuditService",
                FakeAudits(world),
                audit_pb2_grpc.add_AuditServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.MaintenanceService",
                FakeMaintenance(world),
                maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.RetentionService",
                FakeRetention(world),
                retention_pb2_grpc.add_RetentionServiceServicer_to_server,
            ),
            (
                "sendense.repository.v1.VerificationService",
                FakeVerification(world),
                verification_pb2_grpc.add_VerificationServiceServicer_to_server,
            ),
        ),
    ]
    async with AsyncExitStack() as stack:
        for each in services:
            await stack.enter_async_context(serving(each, settings))
        yield world
