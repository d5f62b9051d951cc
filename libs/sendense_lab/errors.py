"""What can go wrong in the lab, as errors that say what the caller may do next."""

from __future__ import annotations


class LabError(Exception):
    """A command of the lab could not be done; nothing was changed by it.

    Attributes:
        reason: Stable upper-case word for programs.
        help: What the caller can do about it; empty when the message says it all.
    """

    def __init__(self, message: str, *, reason: str = "LAB_ERROR", help: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.help = help


class NotFoundError(LabError):
    """A VM, disk, snapshot or guest file does not exist."""

    def __init__(self, message: str, *, help: str = "") -> None:  # noqa: A002
        super().__init__(message, reason="NOT_FOUND", help=help)


class AmbiguousNameError(LabError):
    """Several VMs have this name; say which by its managed object id (vm-…)."""

    def __init__(self, name: str, morefs: list[str]) -> None:
        super().__init__(
            f"{len(morefs)} VMs are named {name!r}: {', '.join(morefs)}",
            reason="AMBIGUOUS_NAME",
            help="Give the id (vm-…) in place of the name.",
        )
        self.morefs = morefs


class InvalidRequestError(LabError):
    """An argument makes no sense for this VM or disk."""

    def __init__(self, message: str, *, help: str = "") -> None:  # noqa: A002
        super().__init__(message, reason="INVALID_ARGUMENT", help=help)


class ProgramError(LabError):
    """A program that the lab uses (qemu-img, mount, mkfs …) failed.

    Attributes:
        argv: The program and its arguments.
        status: Its exit status.
    """

    def __init__(self, argv: list[str], status: int, stderr: str) -> None:
        super().__init__(f"{argv[0]} failed ({status}): {stderr.strip() or 'no message'}", reason="PROGRAM_FAILED")
        self.argv = argv
        self.status = status


class ServerNotRunningError(LabError):
    """The lab's server does not answer on its socket."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(
            f"The lab's server is not running (no answer on {socket_path}).",
            reason="LAB_NOT_RUNNING",
            help="Start the whole system with `make up`, or the lab alone with `sendense-lab serve`; "
            "check that SENDENSE_HOME is the one it runs with.",
        )
