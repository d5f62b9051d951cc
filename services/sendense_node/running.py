"""Starts a node as a process of its own and stops it: what the demo and the end-to-end tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class NodeFailedError(Exception):
    """The node ended instead of becoming ready; the message is what it printed."""


class RunningNode:
    """A `sendense-node up` in a state directory; a context manager that stops it.

    Args:
        home: Its `SENDENSE_HOME`; a short path, since Unix sockets lie below it.
        launcher: What its processes and the programs against it are run by, such as `ip netns exec …`.
        environment: Further variables for all its processes.
    """

    def __init__(self, home: Path, launcher: Sequence[str] = (), **environment: str) -> None:
        self.home = home
        self._launcher = launcher
        self.environment = {**os.environ, "SENDENSE_HOME": str(home), **environment}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._output: list[str] = []

    def start(self) -> Self:
        """Starts the node and returns when it is ready.

        Raises:
            NodeFailedError: It ended before that, or took longer than `START_SECONDS`.
        """
        command = [*self._launcher, sys.executable, "-m", "sendense_node.main", "up"]
        self._output = []
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._process = process
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(process, ready), daemon=True)
        self._reader.start()
        if not ready.wait(START_SECONDS) or not any("is ready" in line for line in self._output):
            self.stop()
            raise NodeFailedError("".join(self._output))
        return self

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        with process:  # closes the pipe at its end
            for line in process.stdout or ():
                self._output.append(line)
                if "is ready" in line:
                    ready.set()
            ready.set()

    @property
    def pid(self) -> int:
        """Process id of `sendense-node up`."""
        return self._started.pid

    @property
    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise NodeFailedError("the node was not started")
        return self._process

    @property
    def output(self) -> str:
        """What the node has printed."""
        return "".join(self._output)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends a signal, Ctrl-C's by default, and returns the exit status."""
        process = self._started
        if process.poll() is None:
            process.send_signal(number)
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            if self._reader is not None:
                # Bounded: a process that outlived the node would hold the pipe open.
                self._reader.join(STOP_SECONDS)
        return status

    def run(self, *command: str) -> str:
        """Runs one of our programs against this node and returns its standard output.

        Raises:
            subprocess.CalledProcessError: It failed; `stderr` says why.
        """
        program = Path(sys.executable).parent / command[0]
        done = subprocess.run(
            [*self._launcher, program, *command[1:]],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
