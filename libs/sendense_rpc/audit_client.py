"""The way of audit events to the access service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from sendense.access.v1 import audit_pb2, audit_pb2_grpc
from sendense_rpc.audit import AuditEvent, AuditSpool
from sendense_rpc.channel import service_peer
from sendense_rpc.settings import ServiceSettings


@asynccontextmanager
async def audit_spool(settings: ServiceSettings, service: str) -> AsyncIterator[AuditSpool]:
    """Opens a service's spool, which sends to the access service for the time of the block."""
    peer = service_peer(settings, "access", service)
    stub = audit_pb2_grpc.AuditServiceStub(peer.channel)

    async def send(events: Sequence[AuditEvent]) -> None:
        request = audit_pb2.RecordAuditEventsRequest(events=map(_message, events))
        await peer.call(stub.RecordAuditEvents, request)

    try:
        async with AuditSpool(settings.root / "audit" / f"{service}.jsonl", send) as spool:
            yield spool
    finally:
        await peer.close()


def _message(event: AuditEvent) -> audit_pb2.AuditEvent:
    message = audit_pb2.AuditEvent(
        event_id=event.event_id,
        actor=event.actor,
        token_id=event.token_id,
        action=event.action,
        target=event.target,
        result=event.result,
        source=event.source,
        request_id=event.request_id,
    )
    message.occurred_at.FromDatetime(datetime.fromisoformat(event.occurred_at))
    return message
