"""The gRPC services of upkeep, as `main` registers them."""

from __future__ import annotations

from sendense.repository.v1 import rebuild_pb2_grpc, retention_pb2_grpc, verification_pb2_grpc
from sendense_repository.rebuild_servicer import RebuildServicer
from sendense_repository.retention_servicer import RetentionServicer
from sendense_repository.unbroken import Unbroken
from sendense_repository.upkeep import Upkeep
from sendense_repository.verification_servicer import VerificationServicer
from sendense_repository.wiring import Parts
from sendense_rpc.server import Servicer


def upkeep_servicers(upkeep: Upkeep, parts: Parts, unbroken: Unbroken) -> list[Servicer]:
    """Returns the services of upkeep."""
    return [
        Servicer(
            "sendense.repository.v1.VerificationService",
            VerificationServicer(upkeep.verification, upkeep.integrity, parts.registry, unbroken),
            verification_pb2_grpc.add_VerificationServiceServicer_to_server,
        ),
        Servicer(
            "sendense.repository.v1.RetentionService",
            RetentionServicer(upkeep.retention, unbroken),
            retention_pb2_grpc.add_RetentionServiceServicer_to_server,
        ),
        Servicer(
            "sendense.repository.v1.RebuildService",
            RebuildServicer(upkeep.scanner, upkeep.rebuilder, unbroken),
            rebuild_pb2_grpc.add_RebuildServiceServicer_to_server,
        ),
    ]
