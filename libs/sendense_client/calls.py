"""What happens to each call on its way out: identity, a deadline, a request id, retries, typed errors.

A mutation without a `request_id` gets one, so that it can be repeated: the server does it once. Repeated is only what
failed because nobody answered, within the call's deadline and with growing pauses.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import stamina
from google.protobuf.message import Message

from sendense_client.errors import Unavailable, error_of

REQUEST_ID = "request_id"
ATTEMPTS = 4

Continuation = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Details(grpc.ClientCallDetails):
    """A call's details as gRPC hands them over, with ours."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str], ...] | None
    credentials: Any = None
    wait_for_ready: bool | None = None
    compression: Any = None


class Calls(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Prepares calls, repeats them and translates their failures.

    Args:
        token: Returns the bearer token, asked for at each call so that it can be renewed.
        timeout: Seconds for a call that names no deadline of its own.
    """

    def __init__(self, token: Callable[[], str], timeout: float) -> None:
        self._token = token
        self._timeout = timeout

    def intercept_unary_unary(self, continuation: Continuation, details: Any, request: Any) -> Any:
        """Makes a call with one answer.

        Raises:
            ApiError: It failed.
        """
        prepared = self._prepared(details, self._timeout)
        request = _repeatable(request)
        timeout = prepared.timeout or self._timeout
        for attempt in stamina.retry_context(on=Unavailable, attempts=ATTEMPTS, timeout=timeout, wait_max=2.0):
            with attempt:
                return _answered(continuation(prepared, request))
        raise AssertionError("unreachable")  # the last attempt's error was raised

    def intercept_unary_stream(self, continuation: Continuation, details: Any, request: Any) -> Any:
        """Opens a stream of answers; it has no deadline unless the call names one, and is not repeated."""
        return _Stream(continuation(self._prepared(details, None), request))

    def _prepared(self, details: Any, timeout: float | None) -> _Details:
        given = tuple(details.metadata or ())
        names = {name for name, _ in given}
        added = {"authorization": f"Bearer {self._token()}", "x-request-id": str(uuid.uuid4())}
        known = _Details(details.method, details.timeout, given, details.credentials, details.wait_for_ready)
        return replace(
            known,
            timeout=timeout if details.timeout is None else details.timeout,
            metadata=(*given, *((name, value) for name, value in added.items() if name not in names)),
        )


class _Stream:
    """A call with a stream of answers, whose failures are typed."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError as failure:
            raise error_of(failure) from failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _answered(call: Any) -> Any:
    try:
        call.result()
    except grpc.RpcError as failure:
        raise error_of(failure) from failure
    return call


def _repeatable(request: Any) -> Any:
    if (
        isinstance(request, Message)
        and REQUEST_ID in request.DESCRIPTOR.fields_by_name
        and not getattr(request, REQUEST_ID)
    ):
        copied = type(request)()
        copied.CopyFrom(request)
        setattr(copied, REQUEST_ID, uuid.uuid4().hex)
        return copied
    return request
