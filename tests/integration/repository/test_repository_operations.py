"""Deletions and consolidations as operations, over the service's socket: planned, started, joined, watched, refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from repository_template import DELETED, Template, make_template

from sendense.repository.v1 import layer_pb2, maintenance_pb2, maintenance_pb2_grpc, point_pb2, point_pb2_grpc
from sendense_repository.config import RepositorySettings
from sendense_repository.main import build
from sendense_rpc.channel import Peer, unix_peer
from sendense_rpc.errors import RemoteError
from support import serving

SECONDS = 120


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("chain"), unsealed=False))


@pytest.fixture
async def peer(chain: Template, sendense_home: Path) -> AsyncIterator[Peer]:
    """The service over a copy of the chain."""
    settings = RepositorySettings()
    home = settings.root / "copy"
    home.mkdir()
    chain.copy(home, settings.local_root)
    (settings.root / "db").mkdir()
    (home / "db.sqlite").rename(settings.root / "db" / "sendense.sqlite")
    async with build(settings) as service, serving(service, settings):
        peer = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
        yield peer
        await peer.close()


def holder(job: str, attempt: int = 1) -> layer_pb2.Holder:
    return layer_pb2.Holder(job_id=job, attempt=attempt)


async def ended(peer: Peer, operation_id: str) -> maintenance_pb2.Operation:
    """Watches an operation to its end."""
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
    last: maintenance_pb2.Operation | None = None
    async with asyncio.timeout(SECONDS):
        async for operation in peer.stream(
            stub.WatchOperation, maintenance_pb2.GetOperationRequest(operation_id=operation_id), timeout=SECONDS
        ):
            last = operation
    assert last is not None
    return last


async def test_a_deletion_is_planned_started_joined_and_watched(peer: Peer) -> None:
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
    plan = await peer.call(stub.PlanDeletion, maintenance_pb2.PlanDeletionRequest(backup_ids=DELETED))
    assert list(plan.deleted_backup_ids) == ["job-2", "job-0"]
    assert [(each.into_backup_id, list(each.backup_ids), each.backup_type) for each in plan.merges] == [
        ("job-1", ["job-0"], "full"),
        ("job-3", ["job-2"], "incremental"),
    ]
    assert plan.freed_bytes > 0
    assert plan.needed_bytes > plan.merges[0].copied_bytes > 0

    start = maintenance_pb2.StartDeletionRequest(holder=holder("delete-1"), backup_ids=DELETED)
    first = await peer.call(stub.StartDeletion, start)
    start.holder.attempt = 2
    joined = await peer.call(stub.StartDeletion, start)
    assert (first.operation_id, first.kind) == (joined.operation_id, joined.kind) == ("delete-1", "deletion")
    done = await ended(peer, "delete-1")

    assert (done.state, done.error_reason, done.bytes_done) == ("done", "", done.bytes_total)
    assert done.freed_bytes > 0
    again = await peer.call(stub.StartDeletion, start)
    assert (await ended(peer, again.operation_id)).state == "done"
    start.holder.attempt = 1
    with pytest.raises(RemoteError) as stale:
        await peer.call(stub.StartDeletion, start)
    assert stale.value.reason == "STALE_ATTEMPT"


async def test_a_run_of_points_becomes_its_last_one(peer: Peer) -> None:
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
    points = point_pb2_grpc.PointServiceStub(peer.channel)
    before = await peer.call(points.GetPoint, point_pb2.GetPointRequest(backup_id="job-3"))
    start = maintenance_pb2.StartConsolidationRequest(
        holder=holder("merge-1"), first_backup_id="job-0", last_backup_id="job-3"
    )
    await peer.call(stub.StartConsolidation, start)
    done = await ended(peer, "merge-1")

    assert (done.state, done.kind) == ("done", "consolidation")
    after = await peer.call(points.GetPoint, point_pb2.GetPointRequest(backup_id="job-3"))
    (old,), (new,) = before.layers, after.layers
    assert (new.layer_id, new.path, new.change_id, new.chain_id) == (
        old.layer_id,
        old.path,
        old.change_id,
        old.chain_id,
    )
    assert (old.backup_type, new.backup_type, new.parent_layer_id) == ("incremental", "full", "")
    start.holder.attempt = 2
    await peer.call(stub.StartConsolidation, start)
    assert (await ended(peer, "merge-1")).state == "done"


async def test_a_reader_is_named_or_waited_for(peer: Peer) -> None:
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
    points = point_pb2_grpc.PointServiceStub(peer.channel)
    lease = point_pb2.LeasePointRequest(backup_id="job-3", holder="mount-7", seconds=600)
    await peer.call(points.LeasePoint, lease)
    start = maintenance_pb2.StartDeletionRequest(holder=holder("delete-1"), backup_ids=["job-1"])
    with pytest.raises(RemoteError, match="mount-7") as refused:
        await peer.call(stub.StartDeletion, start)
    assert refused.value.reason == "POINT_LEASED"
    plan = await peer.call(stub.PlanDeletion, maintenance_pb2.PlanDeletionRequest(backup_ids=["job-1"]))
    assert list(plan.holders) == ["mount-7"]

    start.wait_seconds = SECONDS
    await peer.call(stub.StartDeletion, start)
    async with asyncio.timeout(SECONDS):
        async for operation in peer.stream(
            stub.WatchOperation, maintenance_pb2.GetOperationRequest(operation_id="delete-1"), timeout=SECONDS
        ):
            if operation.state == "waiting":
                assert list(operation.holders) == ["mount-7"]
                release = point_pb2.ReleaseLeaseRequest(backup_id="job-3", holder="mount-7")
                await peer.call(points.ReleaseLease, release)
                break
    assert (await ended(peer, "delete-1")).state == "done"


async def test_what_cannot_be_is_refused_by_name(peer: Peer) -> None:
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
    points = point_pb2_grpc.PointServiceStub(peer.channel)
    plan, start = maintenance_pb2.PlanDeletionRequest, maintenance_pb2.StartDeletionRequest
    run = maintenance_pb2.StartConsolidationRequest
    get = maintenance_pb2.GetOperationRequest
    for method, request, reason in (
        (stub.PlanDeletion, plan(backup_ids=["job-9"]), "POINT_NOT_FOUND"),
        (stub.StartDeletion, start(holder=holder("x"), backup_ids=["job-9"]), "POINT_NOT_FOUND"),
        (
            stub.StartConsolidation,
            run(holder=holder("x"), first_backup_id="job-2", last_backup_id="job-1"),
            "INVALID_FIELD",
        ),
        (
            stub.StartConsolidation,
            run(holder=holder("x"), first_backup_id="job-2", last_backup_id="job-9"),
            "POINT_NOT_FOUND",
        ),
        (stub.GetOperation, get(operation_id="nothing"), "OPERATION_NOT_FOUND"),
    ):
        with pytest.raises(RemoteError) as refused:
            await peer.call(method, request)
        assert refused.value.reason == reason

    # An operation that waits goes on; the same id cannot do something else meanwhile.
    await peer.call(points.LeasePoint, point_pb2.LeasePointRequest(backup_id="job-3", holder="mount-7", seconds=600))
    waiting = start(holder=holder("delete-1"), backup_ids=["job-1"], wait_seconds=SECONDS)
    await peer.call(stub.StartDeletion, waiting)
    with pytest.raises(RemoteError) as refused:
        await peer.call(stub.StartDeletion, start(holder=holder("delete-1"), backup_ids=["job-2"]))
    assert refused.value.reason == "OPERATION_CONFLICT"
    # The service stops with an operation that waits: the fixture ends without waiting for the reader.


async def test_a_deletion_that_fails_says_why_and_changes_nothing(peer: Peer, chain: Template) -> None:
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(peer.channel)
    image = chain.image(RepositorySettings().local_root, "job-1")
    image.chmod(0o644)
    with image.open("r+b") as stream:
        stream.truncate(image.stat().st_size - (128 << 10))
    start = maintenance_pb2.StartDeletionRequest(holder=holder("delete-1"), backup_ids=["job-1"])

    await peer.call(stub.StartDeletion, start)
    failed = await ended(peer, "delete-1")

    assert (failed.state, failed.error_reason) == ("failed", "LAYER_DAMAGED")
    assert failed.error_message
    assert failed.error_help
    points = point_pb2_grpc.PointServiceStub(peer.channel)
    assert await peer.call(points.GetPoint, point_pb2.GetPointRequest(backup_id="job-1"))
