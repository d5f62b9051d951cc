"""Runs a program in a terminal of a given size, as a person does, and takes what it shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SECONDS = 120.0
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])")


@dataclass(frozen=True)
class Shown:
    """What a program showed.

    Attributes:
        raw: Its output, escape sequences included.
        status: Its exit status.
    """

    raw: str
    status: int

    @property
    def text(self) -> str:
        """The output without escape sequences."""
        return _ESCAPE.sub("", self.raw).replace("\r\n", "\n")

    @property
    def widest(self) -> int:
        """Columns of the longest line."""
        return max((len(line.rpartition("\r")[2]) for line in self.text.split("\n")), default=0)


def in_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    columns: int = 80,
    interrupt_after: str = "",
) -> Shown:
    """Runs a program in a terminal until it has ended.

    Args:
        command: The program and its arguments.
        environment: Its whole environment.
        columns: The terminal's width.
        interrupt_after: Press Ctrl-C once this has been shown; empty for never.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + _SECONDS
    try:
        while time.monotonic() < deadline:
            if not select.select([leader], [], [], 0.5)[0]:
                continue
            try:
                part = os.read(leader, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
            if not part:
                break
            shown += part
            if interrupt_after and interrupt_after.encode() in shown:
                interrupt_after = ""
                process.send_signal(signal.SIGINT)
        status = process.wait(max(1.0, deadline - time.monotonic()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(leader)
    return Shown(shown.decode(), status)
