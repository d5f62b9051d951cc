"""Finds names below a directory of a mount: bounded in time, memory and answers; links are never followed.

Blocks: run it in a thread.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sendense_restore.entries import Entry, look
from sendense_restore.names import escape
from sendense_restore.paths import GuestPath, open_directory
from sendense_restore.walk import Walk

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
DEADLINE_SECONDS = 20.0
_ANSWER_BYTES = 256 << 10
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        entries: Each with its path as requests take it.
        truncated: Whether there may be more.
        examined: How many names were looked at.
    """

    entries: tuple[tuple[Entry, str], ...]
    truncated: bool
    examined: int


def search(root: Path, path: GuestPath, pattern: str, limit: int, seconds: float = DEADLINE_SECONDS) -> Found:
    """Looks for names below a directory.

    Args:
        root: Directory on the host that is the path's root.
        path: The directory to look below.
        pattern: See SearchFilesRequest.
        limit: Most answers; 0 means 100, more than 1000 means 1000.
        seconds: After so long the search ends with what it has.

    Raises:
        NotADirectory: The path is something else.
        FileMissing: It is not there.
        FileUnreadable: The file system does not give it.
    """
    most = min(limit, MAX_LIMIT) if limit > 0 else DEFAULT_LIMIT
    matches = _matcher(pattern)
    prefix = path.display.rstrip("/")
    deadline = time.monotonic() + seconds
    entries: list[tuple[Entry, str]] = []
    room, examined = _ANSWER_BYTES, 0
    directory = open_directory(root, path)
    with Walk(directory) as walk:
        for step in walk:
            examined += 1
            if len(entries) >= most or room <= 0 or time.monotonic() > deadline:
                return Found(tuple(entries), truncated=True, examined=examined)
            shown = escape(step.name)
            below = escape(step.path)
            if matches(shown, below):
                entry = look(step.directory, step.name)
                entries.append((entry, f"{prefix}/{below}"))
                room -= len(below) + len(entry.link_target) + len(prefix)
        return Found(tuple(entries), truncated=walk.skipped > 0, examined=examined)


def _matcher(pattern: str) -> Callable[[str, str], bool]:
    if not _WILD.search(pattern):
        part = pattern.lower()
        if "/" in part:
            return lambda name, below: part in "/" + below.lower()  # noqa: ARG005 - one shape for all
        return lambda name, below: part in name.lower()  # noqa: ARG005
    wanted = re.compile(fnmatch.translate(pattern.lstrip("/")), re.IGNORECASE | re.ASCII)
    if "/" in pattern:
        return lambda name, below: wanted.match(below) is not None  # noqa: ARG005
    return lambda name, below: wanted.match(name) is not None  # noqa: ARG005
