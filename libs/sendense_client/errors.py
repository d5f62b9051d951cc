"""What a call may raise: one class for each thing that a program does about it.

All carry what `ErrorInfo` says: `kind`, `reason` (of docs/errors.md), `message`, `help`, `retryable`, `metadata`.
"""

from __future__ import annotations

import grpc

from sendense_rpc.errors import Kind, RemoteError
from sendense_rpc.status import from_rpc_error


class ApiError(RemoteError):
    """A call failed. The classes below say what to do about it; this one itself is for the rest."""


class NotFound(ApiError):
    """There is no such thing, or the token does not admit it."""


class NotAllowed(ApiError):
    """The token is not good, or its role or its limits do not suffice."""


class InvalidRequest(ApiError):
    """The request is wrong; asking again the same way fails again."""


class Conflict(ApiError):
    """Something is in the way: it exists already, is in use, in another state, or there is no room."""


class Unavailable(ApiError):
    """Nobody answered now. It may go better in a moment; the client has tried several times already."""


class DeadlineExceeded(ApiError):
    """No answer in time. What was asked for may have been done: ask again with the same `request_id`."""


_CLASSES: dict[Kind, type[ApiError]] = {
    Kind.NOT_FOUND: NotFound,
    Kind.UNAUTHENTICATED: NotAllowed,
    Kind.PERMISSION_DENIED: NotAllowed,
    Kind.INVALID_ARGUMENT: InvalidRequest,
    Kind.ALREADY_EXISTS: Conflict,
    Kind.ABORTED: Conflict,
    Kind.FAILED_PRECONDITION: Conflict,
    Kind.RESOURCE_EXHAUSTED: Conflict,
    Kind.UNAVAILABLE: Unavailable,
    Kind.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def error_of(failure: grpc.RpcError) -> ApiError:
    """Returns what a failed call reports, as one of these classes."""
    said = from_rpc_error(failure)
    return class_of(said.kind)(
        said.message,
        kind=said.kind,
        reason=said.reason,
        help=said.help,
        retryable=said.retryable,
        metadata=said.metadata,
    )


def class_of(kind: Kind) -> type[ApiError]:
    """Returns the class for a kind of failure."""
    return _CLASSES.get(kind, ApiError)
