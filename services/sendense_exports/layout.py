"""The folder that nbdd and the exports service share, made by whichever of them comes first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sendense_exports.config import ExportsSettings

_DEFAULT_CONF = """\
# Read by nbdd at its start and on SIGHUP; the syntax is that of nbd-server(5).
# Clients reach the exports through a Unix socket; deploy/nbd-server.conf says what may stand here, and how to have a
# TCP address in front of it.
[generic]
includedir = {conf_dir}
"""


def ensure_layout(settings: ExportsSettings) -> None:
    """Makes the folders and, unless there is one, a main configuration file that includes `conf.d`.

    Raises:
        OSError: They cannot be made.
    """
    for folder in (
        settings.conf_dir,
        settings.force_dir,
        settings.run_dir,
        settings.daemon_log.parent,
    ):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not settings.conf_file.exists():
        _create_whole(settings.conf_file, _DEFAULT_CONF.format(conf_dir=settings.conf_dir))


def _create_whole(path: Path, text: str) -> None:
    """Creates a file with its content at once, and leaves one that another process made meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.write_text(text, "utf-8")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_generation(path: Path) -> int:
    """Returns the number in the generation file; 0 when there is none.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no number.
    """
    try:
        return int(path.read_text("ascii"))
    except FileNotFoundError:
        return 0
