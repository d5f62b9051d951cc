"""Who uses a directory tree: processes with a working directory or an open file in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def holders(directories: Iterable[Path], *, except_pids: Iterable[int] = ()) -> list[str]:
    """Returns who holds something at or below directories, as `name (pid n)`; blocks for some milliseconds.

    Processes that we may not look at are not seen.
    """
    places = [os.fspath(directory) for directory in directories]
    skipped = {os.getpid(), *except_pids}
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) in skipped:
            continue
        if any(_is_below(link, places) for link in _links(process)):
            found.append(f"{_name(process)} (pid {process.name})")
    return sorted(found)


def _links(process: Path) -> Iterator[str]:
    links = [process / "cwd", process / "root"]
    with contextlib.suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with contextlib.suppress(OSError):
            yield os.fspath(link.readlink())


def _is_below(link: str, places: list[str]) -> bool:
    return any(link == place or link.startswith(place + "/") for place in places)


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "a process"
