"""Exit codes, and errors that happen on this side of the gateway."""

from __future__ import annotations

import enum

from sendense_rpc.errors import Kind, SendenseError


class ExitCode(enum.IntEnum):
    """What the exit status of `sendense-ctl` says; the same words are in docs/errors.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    CONFLICT = 5
    UNAVAILABLE = 6
    INVALID = 7
    BACKUP_FAILED = 8
    INTERRUPTED = 130


_BY_KIND = {
    Kind.NOT_FOUND: ExitCode.NOT_FOUND,
    Kind.UNAUTHENTICATED: ExitCode.NOT_ALLOWED,
    Kind.PERMISSION_DENIED: ExitCode.NOT_ALLOWED,
    Kind.FAILED_PRECONDITION: ExitCode.CONFLICT,
    Kind.ABORTED: ExitCode.CONFLICT,
    Kind.ALREADY_EXISTS: ExitCode.CONFLICT,
    Kind.RESOURCE_EXHAUSTED: ExitCode.CONFLICT,
    Kind.UNAVAILABLE: ExitCode.UNAVAILABLE,
    Kind.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
    Kind.INVALID_ARGUMENT: ExitCode.INVALID,
}


def exit_code_of(error: SendenseError) -> ExitCode:
    """Returns the exit status for what a service reported."""
    return _BY_KIND.get(error.kind, ExitCode.FAILED)


class LocalError(Exception):
    """Something on this machine is in the way; the message names it, `help` says what to do."""

    def __init__(self, message: str, help_: str = "") -> None:
        super().__init__(message)
        self.help = help_
