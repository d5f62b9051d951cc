"""What the exports service refuses, and why; the reasons are in docs/errors.md."""

from __future__ import annotations

from sendense_rpc.errors import Kind, SendenseError


class ExportNotFoundError(SendenseError):
    """No export has this name."""

    def __init__(self, export_name: str) -> None:
        super().__init__(
            f"no export is called '{export_name}'",
            kind=Kind.NOT_FOUND,
            reason="EXPORT_NOT_FOUND",
            help="List the exports with GET /api/v1/exports.",
            metadata={"export_name": export_name},
        )


class ExportExistsError(SendenseError):
    """The name is taken by something else than what is asked for, or was used before."""

    def __init__(self, export_name: str, holder: str, what: str) -> None:
        super().__init__(
            f"the export name '{export_name}' is used: {what}",
            kind=Kind.ALREADY_EXISTS,
            reason="EXPORT_EXISTS",
            help="Choose another name, such as that of the next second; a name that was served is never served again.",
            metadata={"export_name": export_name, "holder": holder},
        )


class ImageBusyError(SendenseError):
    """The image has a writer, or readers that a writer would disturb."""

    def __init__(self, path: str, problem: str, *, holder: str = "", export_name: str = "") -> None:
        super().__init__(
            f"{path}: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="IMAGE_BUSY",
            help="Wait until its holder has ended, then try again.",
            retryable=True,
            metadata={"path": path, "holder": holder, "export_name": export_name},
        )


class PathRefusedError(SendenseError):
    """The path is not one that may be served."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}",
            kind=Kind.INVALID_ARGUMENT,
            reason="PATH_REFUSED",
            help="Images lie below SENDENSE_EXPORTS_ROOTS; block devices match SENDENSE_EXPORTS_DEVICE_PATTERN.",
            metadata={"path": path},
        )


class ImageRefusedError(SendenseError):
    """The image is damaged, tampered with, or not of the format that was said."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            problem if path in problem else f"{path}: {problem}",
            kind=Kind.INVALID_ARGUMENT,
            reason="IMAGE_REFUSED",
            help="Do not open the file with other tools; verify its restore point.",
            metadata={"path": path},
        )


class StaleAttemptError(SendenseError):
    """A newer attempt of the job was seen; this one is over."""

    def __init__(self, job_id: str, attempt: int, newest: int) -> None:
        super().__init__(
            f"attempt {attempt} of {job_id} is over: attempt {newest} has taken the job",
            kind=Kind.ABORTED,
            reason="STALE_ATTEMPT",
            help="Stop; the newer attempt does the work.",
            metadata={"job_id": job_id, "attempt": str(attempt), "newest_attempt": str(newest)},
        )


class ExportHeldError(SendenseError):
    """Another job holds the export."""

    def __init__(self, export_name: str, holder: str) -> None:
        super().__init__(
            f"export '{export_name}' belongs to {holder}",
            kind=Kind.FAILED_PRECONDITION,
            reason="EXPORT_HELD",
            help="Only its holder removes it; cancel that job.",
            metadata={"export_name": export_name, "holder": holder},
        )


class ExportBusyError(SendenseError):
    """Clients are connected, and cutting them off was not asked for."""

    def __init__(self, export_name: str, waited_seconds: float) -> None:
        super().__init__(
            f"export '{export_name}' still has clients after {waited_seconds:g} s",
            kind=Kind.FAILED_PRECONDITION,
            reason="EXPORT_BUSY",
            help="End its clients, or delete with `force`.",
            retryable=True,
            metadata={"export_name": export_name},
        )


class ExportFailedError(SendenseError):
    """nbdd could not serve it."""

    def __init__(self, export_name: str, problem: str) -> None:
        super().__init__(
            f"export '{export_name}' cannot be served: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="EXPORT_FAILED",
            help="The message says what qemu-storage-daemon refused; its log is log/qemu-storage-daemon.log.",
            metadata={"export_name": export_name},
        )


class NbddTimeoutError(SendenseError):
    """nbdd did not apply a change in time; it may still do so."""

    def __init__(self, waited_seconds: float) -> None:
        super().__init__(
            f"nbdd did not apply the change within {waited_seconds:g} s",
            kind=Kind.DEADLINE_EXCEEDED,
            reason="NBDD_TIMEOUT",
            help="Look at nbd/status.json and at nbdd's log, then try again.",
            retryable=True,
        )


class NbddDownError(SendenseError):
    """nbdd does not run; nothing was changed."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"nbdd does not run: {problem}",
            kind=Kind.UNAVAILABLE,
            reason="NBDD_DOWN",
            help="Start sendense-nbdd.",
            retryable=True,
        )


class NbddConfigError(SendenseError):
    """The main configuration is broken, so nbdd changes nothing."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"nbdd refuses its configuration: {problem}",
            kind=Kind.FAILED_PRECONDITION,
            reason="NBDD_CONFIG_BROKEN",
            help="Repair the named line and reload the exports.",
        )


class InvalidPageError(SendenseError):
    """The page asked for is not one."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(
            f"{field}: {problem}",
            kind=Kind.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            metadata={"field": field},
        )
