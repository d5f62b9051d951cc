"""The one door of every server: identity, role, limits, validation, repeats, audit, errors, one log line a call."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from sendense_rpc.audit import OK, AuditEvent, AuditLog
from sendense_rpc.channel import REQUEST_ID
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.identity import (
    Caller,
    TokenLimited,
    TokenVerifier,
    current_caller,
    on_behalf,
    require_role,
    set_caller,
)
from sendense_rpc.limits import HEADER as LIMITS
from sendense_rpc.methods import Method
from sendense_rpc.metrics import count_call
from sendense_rpc.repeats import Repeats, scoped
from sendense_rpc.status import from_rpc_error, to_status
from sendense_rpc.validation import validate

log = structlog.get_logger()

_PUBLIC_PREFIXES = ("/grpc.health.",)
_VIEWER_PREFIXES = ("/grpc.reflection.",)


class Door(aio.ServerInterceptor):
    """Wraps each handler.

    Args:
        verifier: Verifies tokens.
        methods: The service's RPCs by their gRPC path.
        repeats: Answers repeated requests; None where there is no ledger.
        own_repeats: Paths of the RPCs that look after their request ids themselves.
        audit: Where mutations and refusals are recorded; None for nowhere.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        methods: Mapping[str, Method],
        *,
        repeats: Repeats | None = None,
        own_repeats: frozenset[str] = frozenset(),
        audit: AuditLog | None = None,
    ) -> None:
        self._verifier = verifier
        self._methods = methods
        self._repeats = repeats
        self._own_repeats = own_repeats
        self._audit = audit

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

    def _single(
        self,
        serve: Any,
        method: str,
        metadata: dict[str, Any],
        streaming: bool,  # noqa: FBT001
    ) -> Any:
        async def call(request: Any, context: Any) -> Any:
            started = time.monotonic()
            try:
                request = await self._admitted(request, method, metadata, streaming)
                answer = await self._served(serve, method, request, context)
            except Exception as error:  # everything leaves through `_abort`
                await _abort(context, _failure(error, method), method, started)
                raise AssertionError("abort returned") from error
            self._log_good(method, started)
            return answer

        return call

    def _log_good(self, method: str, started: float) -> None:
        known = self._methods.get(method)
        # The gateway's access log has a line for each, with the same request id; mutations are worth a second one.
        count_only = known is not None and known.rest is not None and not known.mutation
        _log_call(method, "OK", started, quiet=count_only)

    async def _served(self, serve: Any, method: str, request: Any, context: Any) -> Any:
        known = self._methods.get(method)
        request_id = getattr(request, "request_id", "") if known and known.has_request_id else ""
        caller = current_caller()
        if not (known and known.mutation and request_id and self._repeats and caller):
            return await self._done(serve, method, request, context)
        inner = type(request)()
        inner.CopyFrom(request)
        inner.request_id = scoped(caller.subject, method, request_id)
        if method in self._own_repeats:
            return await self._done(serve, method, inner, context)

        def read(answer: bytes) -> Message:
            return known.answer_type.FromString(answer)

        return await self._repeats.once(
            caller.subject, method, request, request_id, lambda: self._done(serve, method, inner, context), read
        )

    async def _done(self, serve: Any, method: str, request: Any, context: Any) -> Any:
        """Serves a call and records what became of it, whether its caller waits for that or not."""
        try:
            answer = await serve(request, context)
        except asyncio.CancelledError:
            await self._record(method, request, "CANCELLED")
            raise
        except Exception as error:
            failure = _failure(error, method)
            await self._record(method, request, failure.reason)
            raise failure from error
        await self._record(method, request, OK)
        return answer

    def _streaming(self, serve: Any, method: str, metadata: dict[str, Any], streaming: bool) -> Any:  # noqa: FBT001
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started = time.monotonic()
            try:
                request = await self._admitted(request, method, metadata, streaming)
                async for answer in serve(request, context):
                    yield answer
            except Exception as error:  # noqa: BLE001
                await _abort(context, _failure(error, method), method, started)
            self._log_good(method, started)

        return call

    async def _admitted(self, request: Any, method: str, metadata: dict[str, Any], streaming: bool) -> Any:  # noqa: FBT001
        try:
            return self._admit(request, method, metadata, streaming)
        except SendenseError as error:
            if error.kind is Kind.PERMISSION_DENIED:
                await self._record(method, request, error.reason, refused=True)
            raise

    def _admit(self, request: Any, method: str, metadata: dict[str, Any], streaming: bool) -> Any:  # noqa: FBT001
        request_id = str(metadata.get(REQUEST_ID) or uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=request_id)
        set_caller(None)
        caller = on_behalf(self._verifier.verify(metadata.get("authorization")), metadata.get(LIMITS))
        caller = replace(caller, source=_source(metadata), request_id=request_id)
        structlog.contextvars.bind_contextvars(caller=caller.subject)
        set_caller(caller)
        if not method.startswith(_VIEWER_PREFIXES):
            _require(caller, self._methods[method])
        else:
            require_role(caller, "viewer", method.lstrip("/"))
        if streaming:
            return _validated(request)
        if isinstance(request, Message):
            validate(request)
        return request

    async def _record(self, method: str, request: Any, result: str, *, refused: bool = False) -> None:
        known, caller = self._methods.get(method), current_caller()
        if self._audit is None or known is None or caller is None or not (known.mutation or refused):
            return
        await self._audit.record(
            AuditEvent(
                actor=caller.subject,
                token_id=caller.token_id,
                action=known.action,
                target=known.target(request) if isinstance(request, Message) else "",
                result=result,
                source=caller.source,
                request_id=caller.request_id,
            )
        )


def _require(caller: Caller, method: Method) -> None:
    require_role(caller, method.role, method.path.lstrip("/"))
    # A workload's limits are those of the person that it works for; internal RPCs may be needed for that.
    if caller.limits and caller.role != "internal" and not method.limitable:
        raise TokenLimited(method.path.lstrip("/"))


def _source(metadata: Mapping[str, Any]) -> str:
    """Returns the last address of X-Forwarded-For: the gateway wrote it, those before it are what the client says."""
    return str(metadata.get("x-forwarded-for", "")).rpartition(",")[2].strip()[:64]


async def _validated(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Message):  # what is passed on is bytes here, and validated where it is understood
            validate(request)
        yield request


def _log_call(method: str, code: str, started: float, *, quiet: bool = False, **facts: object) -> None:
    seconds = time.monotonic() - started
    count_call(method, code, str(facts.get("reason", "")), seconds)
    if not quiet:
        log.info("call", method=method, code=code, seconds=round(seconds, 4), **facts)


def _failure(error: Exception, method: str) -> SendenseError:
    """Returns any failure as one that a caller may see.

    Raises:
        AbortError: The servicer has answered already.
    """
    if isinstance(error, aio.AbortError):
        raise error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    if isinstance(error, SendenseError):
        return error
    incident = uuid.uuid4().hex[:12]
    log.error("unexpected error", method=method, incident=incident, exc_info=error)
    return SendenseError(
        f"an unexpected error happened; it is in the log as {incident}",
        kind=Kind.INTERNAL,
        reason="INTERNAL",
        help=f"Look for {incident} in the service's log and report it.",
        metadata={"incident": incident},
    )


async def _abort(context: Any, error: SendenseError, method: str, started: float) -> None:
    _log_call(method, error.kind.name, started, reason=error.reason, message=error.message)
    await context.abort_with_status(to_status(error))
