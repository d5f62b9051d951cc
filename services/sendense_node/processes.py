"""Runs a Procfile's processes with honcho: logs to one file each, all stop when one does."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import honcho.environ
import honcho.manager
from honcho.printer import Message

TAIL_LINES = 15
"""Lines of a failed process's log that are shown."""

honcho.manager.KILL_WAIT = 30  # restore unmounts and nbdd flushes at SIGTERM; honcho's 5 s would cut them off


class LogFiles:
    """honcho's printer: a process's lines go to `<log_dir>/<process>.log`; the newest are kept for error messages."""

    def __init__(self, log_dir: Path) -> None:
        self.width = 0
        self._log_dir = log_dir
        self._files: dict[str, IO[bytes]] = {}
        self._tails: dict[str, collections.deque[str]] = {}

    def write(self, message: Message) -> None:
        """Takes one line of a process."""
        data = message.data if isinstance(message.data, bytes) else str(message.data).encode()
        if message.name not in self._files:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            self._files[message.name] = (self._log_dir / f"{message.name}.log").open("ab")
            self._tails[message.name] = collections.deque(maxlen=TAIL_LINES)
        self._files[message.name].write(data if data.endswith(b"\n") else data + b"\n")
        self._files[message.name].flush()
        self._tails[message.name].append(data.decode(errors="replace").rstrip())

    def tail(self, name: str) -> list[str]:
        """Returns the newest lines of a process."""
        return list(self._tails.get(name, ()))

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


class Processes(honcho.manager.Manager):  # type: ignore[misc]
    """honcho's manager, which also survives a signal that comes before every process has started."""

    def __init__(
        self,
        commands: dict[str, str],
        environment: dict[str, str],
        logs: LogFiles,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(printer=logs)
        self.logs = logs
        self._on_started = on_started
        self._asked = False
        for name, command in commands.items():
            self.add_process(name, f"exec {command}", env=environment)

    def _start(self) -> None:
        super()._start()
        # Only now: honcho forks, and a fork while another thread runs can copy a lock that nobody will ever release.
        self._on_started()

    def terminate(self) -> None:
        """Ends all processes; before all have started only notes the wish, since honcho knows no pids yet."""
        self._asked = True
        if self._all_started():
            super().terminate()

    def _any_stopped(self) -> bool:
        return self._asked or bool(super()._any_stopped())

    @property
    def first_failure(self) -> tuple[str, int] | None:
        """The process that ended by itself before it was asked to, with its exit status."""
        return self._failure

    _failure: tuple[str, int] | None = None

    def _system_print(self, data: Any) -> None:
        # honcho reports a stop before it ends the others, so the first one seen is the culprit.
        if not self._asked and self._failure is None:
            for name, process in self._processes.items():
                if process.get("returncode") is not None:
                    self._failure = (name, int(process["returncode"]))
        super()._system_print(data)

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each started process; each leads a process group of its own."""
        return {name: process["pid"] for name, process in self._processes.items() if "pid" in process}


def commands_of(procfile: Path, runs: Callable[[str], bool]) -> dict[str, str]:
    """Returns the commands of a Procfile's processes that run here, by name."""
    commands: dict[str, str] = honcho.environ.parse_procfile(procfile.read_text()).processes
    return {name: command for name, command in commands.items() if runs(name)}


def environment_for(home: Path, bin_dir: Path, lab_port: int | None) -> dict[str, str]:
    """Returns the environment of the processes: ours, with the state directory, this installation's programs first."""
    environment = dict(os.environ)
    environment["SENDENSE_HOME"] = str(home)
    environment["PATH"] = f"{bin_dir}{os.pathsep}{environment.get('PATH', '')}"
    if lab_port is not None:
        environment["SENDENSE_LAB_PORT"] = str(lab_port)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
