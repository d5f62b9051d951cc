"""The status file: what nbdd tells the world, replaced whole or not at all.

The exports service reads it to learn that its generation is applied; people read it to see why something is not
served. Unknown fields are kept out of the way of older readers: only additions are made to it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ExportState = Literal["serving", "draining", "error"]


class StatusUnreadableError(Exception):
    """There is no status file, or it is none of ours; nbdd has perhaps not started yet."""


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """One export.

    Attributes:
        state: `serving`; `draining` while it is to go and clients are still connected; `error` when not served.
        size_bytes: Virtual size, 0 when not known.
        format: `qcow2` or `raw`.
        read_only: Whether clients may only read.
        path: The image or device.
        epoch: From 1, raised whenever the daemon died under a writable export.
        error: Why it is not served; while it is, why its file's present content is not what is served.
        file: The conf file.
        line: The line that is wrong, else that of the export's group.
        id: The daemon's name for it; empty when not served.
        trim: As configured.
        limit_bytes: The configured size of a raw image, None for all of it.
        warnings: Keys that have no effect.
        busy: It is not served because its image is in use.
        size_warning: How `size_bytes` differs from the file's own size; empty when it does not.
    """

    state: ExportState
    size_bytes: int
    format: str
    read_only: bool
    path: str
    epoch: int
    error: str
    file: str
    line: int
    id: str = ""
    trim: bool = False
    limit_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    busy: bool = False
    size_warning: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """Everything.

    Attributes:
        generation: The last one that was applied, -1 before the first.
        pid: nbdd's process.
        daemon_pid: qemu-storage-daemon's, 0 while there is none.
        daemon_starts: How often it was started so far.
        socket_path: Where the daemon listens for NBD clients.
        exports: By name.
        config_error: Why the configuration as a whole was not applied; empty when it was.
        problems: Of files in which no export could be named: file, line, message.
        warnings: Keys of the main file that have no effect.
        tcp_addresses: Where TCP connections are forwarded from, as `host:port`.
        tcp_error: Why there is no TCP address though one is wanted.
    """

    generation: int
    pid: int
    daemon_pid: int
    daemon_starts: int
    socket_path: str
    exports: dict[str, ExportStatus]
    config_error: str = ""
    problems: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tcp_addresses: list[str] = field(default_factory=list)
    tcp_error: str = ""


def write_status(path: Path, status: Status) -> None:
    """Replaces the status file; readers see the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(path, json.dumps(asdict(status), indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it there.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_status(path: Path) -> Status:
    """Reads the status file.

    Raises:
        StatusUnreadableError: It is missing or not understood.
    """
    try:
        said = json.loads(path.read_text("utf-8"))
        known = {name: said[name] for name in Status.__slots__ if name in said}
        known["exports"] = {name: _export(entry) for name, entry in said["exports"].items()}
        return Status(**known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StatusUnreadableError(f"{path}: {error or type(error).__name__}") from error


def _export(entry: dict[str, Any]) -> ExportStatus:
    known = {name: entry[name] for name in ExportStatus.__slots__ if name in entry}
    known["warnings"] = tuple(known.get("warnings", ()))
    return ExportStatus(**known)
