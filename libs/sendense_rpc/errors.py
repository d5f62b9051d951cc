"""Errors that reach a caller: what happened, a reason from docs/errors.md, and what to do next.

Domain code raises these (or subclasses that carry attributes of their own); `sendense_rpc.interceptor` alone turns them
into a `google.rpc.Status` with one `ErrorInfo`. This module imports neither gRPC nor protobuf.
"""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """What kind of failure it is. The names are those of gRPC's status codes."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class SendenseError(Exception):
    """A failure that the caller is told about.

    Args:
        message: Names the thing and says what is wrong with it, for people.
        kind: The kind of failure.
        reason: UPPER_SNAKE word from docs/errors.md, for programs.
        help: What the caller may do next, as a sentence; empty when the message says it.
        retryable: Whether the same call may succeed later without any change.
        metadata: Further facts as strings, such as the ids that are in the way.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Kind,
        reason: str,
        help: str = "",  # noqa: A002  # the word that google.rpc.Help uses
        retryable: bool = False,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.reason = reason
        self.help = help
        self.retryable = retryable
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return self.message


class RemoteError(SendenseError):
    """A failure that another Sendense service reported; carries its kind, reason, help and metadata unchanged."""
