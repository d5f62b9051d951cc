"""The Python client against a real gRPC server: who calls, deadlines, retries that are safe, typed errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_client import (
    ApiError,
    Client,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Unavailable,
)
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.status import to_status


class Backups(backup_pb2_grpc.BackupServiceServicer):
    """Does what the test tells it, and notes what arrives."""

    def __init__(self) -> None:
        self.failures: list[SendenseError] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.left: list[float | None] = []
        self.held = threading.Event()
        self.watches: list[list[str]] = []

    def _arrived(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self.left.append(context.time_remaining())
        if self.failures:
            context.abort_with_status(to_status(self.failures.pop(0)))

    def GetBackup(self, request: Any, context: grpc.ServicerContext) -> backup_pb2.Backup:
        self._arrived(request, context)
        if request.backup_id == "slow":
            self.held.wait(60)
        return backup_pb2.Backup(backup_id=request.backup_id, status="completed")

    def CancelBackup(self, request: Any, context: grpc.ServicerContext) -> backup_pb2.Backup:
        self._arrived(request, context)
        return backup_pb2.Backup(backup_id=request.backup_id)

    def StartBackup(self, request: Any, context: grpc.ServicerContext) -> backup_pb2.Backup:
        self._arrived(request, context)
        return backup_pb2.Backup(backup_id="b1", status="pending")

    def WatchBackup(self, request: Any, context: grpc.ServicerContext) -> Iterator[backup_pb2.Backup]:
        self._arrived(request, context)
        for status in self.watches.pop(0):
            yield backup_pb2.Backup(backup_id="b1", status=status)


@pytest.fixture
def backups() -> Backups:
    return Backups()


@pytest.fixture
def client(backups: Backups) -> Iterator[Client]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    backup_pb2_grpc.add_BackupServiceServicer_to_server(backups, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"http://127.0.0.1:{port}", lambda: "secret", timeout=30) as client:
            yield client
    finally:
        backups.held.set()
        server.stop(None).wait()


def _get(client: Client, backup_id: str = "b1", **how: Any) -> backup_pb2.Backup:
    return client.backups.GetBackup(backup_pb2.GetBackupRequest(backup_id=backup_id), **how)


def _failure(kind: Kind = Kind.UNAVAILABLE, reason: str = "SERVICE_UNAVAILABLE") -> SendenseError:
    return SendenseError("no", kind=kind, reason=reason, help="Do this.", metadata={"backup_id": "b1"})


def test_each_call_says_who_calls_and_has_a_deadline_and_an_id(client: Client, backups: Backups) -> None:
    _get(client)
    _get(client)
    assert [sent["authorization"] for sent in backups.metadata] == ["Bearer secret"] * 2
    assert len({sent["x-request-id"] for sent in backups.metadata}) == 2
    assert all(left is not None and left < 60 for left in backups.left)


def test_a_call_may_have_its_own_deadline(client: Client) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        _get(client, "slow", timeout=0.2)
    assert caught.value.kind is Kind.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.NOT_FOUND, NotFound),
        (Kind.UNAUTHENTICATED, NotAllowed),
        (Kind.PERMISSION_DENIED, NotAllowed),
        (Kind.INVALID_ARGUMENT, InvalidRequest),
        (Kind.ABORTED, Conflict),
        (Kind.FAILED_PRECONDITION, Conflict),
        (Kind.RESOURCE_EXHAUSTED, Conflict),
        (Kind.INTERNAL, ApiError),
    ],
)
def test_errors_are_typed_whole_and_not_repeated(
    client: Client, backups: Backups, kind: Kind, expected: type[ApiError]
) -> None:
    backups.failures = [_failure(kind, "SOME_REASON")]
    with pytest.raises(expected) as caught:
        _get(client)
    assert type(caught.value) is expected
    assert (caught.value.reason, caught.value.help) == ("SOME_REASON", "Do this.")
    assert caught.value.metadata == {"backup_id": "b1"}
    assert len(backups.requests) == 1


def test_what_nobody_answered_is_repeated_with_the_same_request_id(client: Client, backups: Backups) -> None:
    backups.failures = [_failure(), _failure()]
    request = backup_pb2.CancelBackupRequest(backup_id="b1")
    assert client.backups.CancelBackup(request).backup_id == "b1"
    assert len(backups.requests) == 3
    (request_id,) = {sent.request_id for sent in backups.requests}
    assert request_id
    assert request.request_id == ""  # the caller's message stays as it was
    client.backups.CancelBackup(request)
    assert backups.requests[-1].request_id != request_id


def test_a_given_request_id_is_kept(client: Client, backups: Backups) -> None:
    client.backups.CancelBackup(backup_pb2.CancelBackupRequest(backup_id="b1", request_id="mine"))
    assert backups.requests[0].request_id == "mine"


def test_it_gives_up_after_some_tries(client: Client, backups: Backups) -> None:
    backups.failures = [_failure() for _ in range(20)]
    with pytest.raises(Unavailable, match="no"):
        _get(client)
    assert 1 < len(backups.requests) < 20


def test_nobody_there_is_unavailable() -> None:
    with Client("http://127.0.0.1:1", "secret") as client, pytest.raises(Unavailable):
        _get(client)


def test_following_joins_again_and_ends_with_a_final_state(client: Client, backups: Backups) -> None:
    backups.watches = [["running"], ["running", "completed", "never seen"]]
    seen = [backup.status for backup in client.follow("b1")]
    assert seen == ["running", "running", "completed"]
    backups.watches = [["completed"]]
    assert client.back_up("vm", full=True).status == "completed"
    assert backups.requests[-2].backup_type == "full"


def test_a_stream_that_is_refused_is_a_typed_error(client: Client, backups: Backups) -> None:
    backups.failures = [_failure(Kind.NOT_FOUND, "BACKUP_NOT_FOUND")]
    with pytest.raises(NotFound):
        list(client.follow("nothing"))


@pytest.mark.parametrize("endpoint", ["", "gateway:443", "ftp://x", "https://"])
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="https://host:port"):
        Client(endpoint, "secret")
