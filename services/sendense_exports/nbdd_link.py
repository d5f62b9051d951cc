"""The service's side of its talk with nbdd: conf files, the generation, a signal, and the status file.

What always holds: conf files are whole or absent; the generation is written after them and before the signal, so
a status with that generation has seen them; a process is signalled only while it holds the lock on the pid file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

from sendense_exports.config import ExportsSettings
from sendense_exports.errors import NbddConfigError, NbddDownError, NbddTimeoutError
from sendense_exports.exportconf import ExportSpec, write_export
from sendense_exports.layout import read_generation
from sendense_exports.status import Status, StatusUnreadableError, read_status, replace_file

POLL_SECONDS = 0.002
"""How often it is looked whether nbdd has replaced its status file; it is read only then."""


class NbddLink:
    """Changes the configuration and waits until nbdd has applied it."""

    def __init__(self, settings: ExportsSettings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()

    async def require_running(self) -> None:
        """Looks whether nbdd runs.

        Raises:
            NbddDownError: It does not.
        """
        await asyncio.to_thread(self._pid)

    async def write(self, spec: ExportSpec) -> Status:
        """Writes an export's conf file and waits until it is applied.

        Raises:
            NbddDownError: nbdd does not run.
            NbddConfigError: The main configuration is broken.
            NbddTimeoutError: It was not applied in time.
        """

        def write() -> None:
            (self._settings.force_dir / spec.name).unlink(missing_ok=True)
            replace_file(self.conf_file(spec.name), write_export(spec))

        return await self._change(write)

    async def remove(self, name: str) -> Status:
        """Removes an export's conf file and waits until nbdd has seen it; clients may still be connected.

        Raises:
            NbddDownError: nbdd does not run.
            NbddConfigError: The main configuration is broken.
            NbddTimeoutError: It was not applied in time.
        """
        return await self._change(lambda: self.conf_file(name).unlink(missing_ok=True))

    async def force(self, name: str) -> Status:
        """Makes nbdd cut off the clients of an export whose conf file is gone.

        Raises:
            NbddDownError: nbdd does not run.
            NbddTimeoutError: It was not applied in time.
        """
        return await self._change(lambda: (self._settings.force_dir / name).touch())

    async def reload(self) -> Status:
        """Makes nbdd read everything again and waits until it is applied.

        Raises:
            NbddDownError: nbdd does not run.
            NbddConfigError: The main configuration is broken.
            NbddTimeoutError: It was not applied in time.
        """
        return await self._change(lambda: None)

    async def status(self) -> Status | None:
        """Returns what nbdd told last; None when it never did."""
        try:
            return await asyncio.to_thread(read_status, self._settings.status_file)
        except StatusUnreadableError:
            return None

    async def wait_gone(self, name: str, seconds: float) -> bool:
        """Waits until nbdd does not serve an export any more; False when it still does at the deadline."""
        status = await self._await_status(lambda status: name not in status.exports, seconds)
        return status is not None and name not in status.exports

    def conf_file(self, name: str) -> Path:
        """Where an export's conf file stands; the name is one that the API's pattern admits."""
        return self._settings.conf_dir / f"{name}.conf"

    def configured_names(self) -> list[str]:
        """Returns the names of the conf files that stand there now, whoever wrote them; blocks."""
        return [file.stem for file in self._settings.conf_dir.glob("*.conf")]

    async def _change(self, change: Callable[[], object]) -> Status:
        async with self._lock:
            generation = await asyncio.to_thread(self._make, change)
        return await self._applied(generation)

    def _make(self, change: Callable[[], object]) -> int:
        pid = self._pid()
        change()
        generation = read_generation(self._settings.generation_file) + 1
        replace_file(self._settings.generation_file, f"{generation}\n")
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError as error:
            raise NbddDownError(f"process {pid} is gone") from error
        return generation

    def _pid(self) -> int:
        """Returns nbdd's process id, known to be its own since it holds the lock."""
        path = self._settings.pid_file
        try:
            with path.open("r", encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read())
        except FileNotFoundError as error:
            raise NbddDownError(f"there is no {path}") from error
        except ValueError as error:
            raise NbddDownError(f"{path} holds no process id yet") from error
        raise NbddDownError(f"nobody holds the lock on {path}")

    async def _applied(self, generation: int) -> Status:
        seconds = self._settings.apply_seconds
        status = await self._await_status(lambda status: status.generation >= generation, seconds)
        if status is not None and status.generation >= generation:
            return status
        if status is not None and status.config_error:
            raise NbddConfigError(status.config_error)
        raise NbddTimeoutError(seconds)

    async def _await_status(self, fits: Callable[[Status], bool], seconds: float) -> Status | None:
        """Returns the first status that fits, or the last one that there was at the deadline."""
        deadline = asyncio.get_running_loop().time() + seconds
        seen: tuple[int, int] | None = None
        status: Status | None = None
        while True:
            now = _version(self._settings.status_file)
            if now != seen or now is None:
                seen, status = now, await self.status()
                if status is not None and fits(status):
                    return status
            if asyncio.get_running_loop().time() > deadline:
                return status
            await asyncio.sleep(POLL_SECONDS)


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
