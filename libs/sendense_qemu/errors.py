"""What can go wrong with qemu's programs and files; each error carries what a caller needs to say it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


class QemuError(Exception):
    """Base of everything that this library raises on purpose."""


class QemuImgError(QemuError):
    """A qemu program failed, was killed or could not be started.

    The image may be half written when the command was one that writes: throw the output away, or check it.

    Attributes:
        command: Program and arguments.
        status: Exit status; negative for a signal; None when it never ended by itself.
        stderr: What it said.
        timed_out: Whether its deadline ended it; then a retry may help.
    """

    def __init__(self, command: Sequence[str], status: int | None, stderr: str, *, timed_out: bool = False) -> None:
        self.command = tuple(command)
        self.status = status
        self.stderr = stderr
        self.timed_out = timed_out
        how = "failed" if status is None else f"ended with status {status}"
        super().__init__(f"{shlex.join(self.command)} {how}: {stderr or 'no message'}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its arguments (workers in other processes raise it)."""
        return (_restore_img_error, (self.command, self.status, self.stderr, self.timed_out))

    @property
    def is_locked(self) -> bool:
        """Whether another process holds the image's lock (a writer, or a reader that refuses writers)."""
        return "lock" in self.stderr and "Failed to get" in self.stderr


def _restore_img_error(
    command: Sequence[str],
    status: int | None,
    stderr: str,
    timed_out: bool,  # noqa: FBT001 - pickle calls it
) -> QemuImgError:
    return QemuImgError(command, status, stderr, timed_out=timed_out)


class HeaderError(QemuError):
    """A file's header is not one that we let qemu open; the file was not touched.

    Never retry: a file that we wrote does not look like this. It is damaged or was tampered with.

    Attributes:
        path: The file.
        finding: What is wrong, in one clause.
    """

    def __init__(self, path: Path, finding: str) -> None:
        self.path = path
        self.finding = finding
        super().__init__(f"{path}: refused before qemu opens it: {finding}")


class StorageDaemonError(QemuError):
    """qemu-storage-daemon refused a command, or did not start.

    Attributes:
        command: The QMP command, or "start".
        detail: Its message.
    """

    def __init__(self, command: str, detail: str) -> None:
        self.command = command
        self.detail = detail
        super().__init__(f"qemu-storage-daemon: {command}: {detail}")

    @property
    def is_locked(self) -> bool:
        """Whether another process holds the image's lock."""
        return "lock" in self.detail and "Failed to get" in self.detail


class StorageDaemonGoneError(StorageDaemonError):
    """qemu-storage-daemon ended; whatever was not flushed is gone (DESIGN 4: begin a new epoch)."""
