"""The one door of every server: identity, role, validation, request id, error mapping, one log line a call."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.identity import TokenVerifier, require_role, set_caller
from sendense_rpc.status import from_rpc_error, to_status
from sendense_rpc.validation import validate

log = structlog.get_logger()

REQUEST_ID = "x-request-id"
_PUBLIC_PREFIXES = ("/grpc.health.",)
_VIEWER_PREFIXES = ("/grpc.reflection.",)


class Door(aio.ServerInterceptor):
    """Wraps each handler.

    Args:
        verifier: Verifies tokens.
        roles: For each full method name (`/pkg.Service/Method`) the role that it needs, lower case.
    """

    def __init__(self, verifier: TokenVerifier, roles: Mapping[str, str]) -> None:
        self._verifier = verifier
        self._roles = roles

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler of a call, wrapped; gRPC calls this."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_PUBLIC_PREFIXES):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        if handler.response_streaming:
            serve = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped = self._streaming(serve, method, metadata, handler.request_streaming)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            serve = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrapped = self._single(serve, method, metadata, handler.request_streaming)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, serve: Any, method: str, metadata: dict[str, Any], streaming: bool) -> Any:  # noqa: FBT001
        async def call(request: Any, context: Any) -> Any:
            started = time.monotonic()
            try:
                request = self._admit(request, method, metadata, streaming)
                answer = await serve(request, context)
            except Exception as error:  # everything leaves through `_abort`
                await _abort(context, error, method, started)
                raise AssertionError("abort returned") from error
            _log_call(method, "OK", started)
            return answer

        return call

    def _streaming(self, serve: Any, method: str, metadata: dict[str, Any], streaming: bool) -> Any:  # noqa: FBT001
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started = time.monotonic()
            try:
                request = self._admit(request, method, metadata, streaming)
                async for answer in serve(request, context):
                    yield answer
            except Exception as error:  # noqa: BLE001
                await _abort(context, error, method, started)
            _log_call(method, "OK", started)

        return call

    def _admit(self, request: Any, method: str, metadata: dict[str, Any], streaming: bool) -> Any:  # noqa: FBT001
        structlog.contextvars.bind_contextvars(request_id=str(metadata.get(REQUEST_ID) or uuid.uuid4()))
        caller = self._verifier.verify(metadata.get("authorization"))
        structlog.contextvars.bind_contextvars(caller=caller.subject)
        set_caller(caller)
        role = "viewer" if method.startswith(_VIEWER_PREFIXES) else self._roles[method]
        require_role(caller, role, method.lstrip("/"))
        if streaming:
            return _validated(request)
        if isinstance(request, Message):
            validate(request)
        return request


async def _validated(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        validate(request)
        yield request


def _log_call(method: str, code: str, started: float, **facts: object) -> None:
    log.info("call", method=method, code=code, seconds=round(time.monotonic() - started, 4), **facts)


async def _abort(context: Any, error: Exception, method: str, started: float) -> None:
    if isinstance(error, aio.AbortError):
        raise error
    if isinstance(error, grpc.RpcError):
        error = from_rpc_error(error)
    if not isinstance(error, SendenseError):
        incident = uuid.uuid4().hex[:12]
        log.error("unexpected error", method=method, incident=incident, exc_info=error)
        error = SendenseError(
            f"an unexpected error happened; it is in the log as {incident}",
            kind=Kind.INTERNAL,
            reason="INTERNAL",
            help=f"Look for {incident} in the service's log and report it.",
            metadata={"incident": incident},
        )
    _log_call(method, error.kind.name, started, reason=error.reason, message=error.message)
    await context.abort_with_status(to_status(error))
