"""Ends what a daemon still wants to tell clients that were cut off.

A hard removal of an export shuts its clients' sockets down and then waits for their coroutines. One that was writing to
a client that takes no answers is never woken on a Unix socket (qemu 7.2, Linux): a full socket that is shut down polls
as hung up, but not as writable, and qemu wakes a writer for writability only. So the export, and with it the lock on
its image, would stay for as long as that client likes. With a larger send buffer the socket is writable again; the
writer wakes, gets EPIPE and ends. Nothing else is touched: only a socket that is already shut down polls like that.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
from pathlib import Path
from typing import Final

_SYS_PIDFD_GETFD: Final = 438
"""pidfd_getfd(2), the same number on all architectures; Linux 5.6."""
_SO_SNDBUFFORCE: Final = 32
_ENOUGH_BYTES: Final = 8 << 20
"""Far above what a socket holds (208 KiB): Linux calls it writable while at most a quarter of its buffer is used."""

_libc = ctypes.CDLL(None, use_errno=True)


def wake_cut_off_writers(pid: int) -> int:
    """Lets a daemon finish with clients that were cut off while they took no answers.

    Args:
        pid: The daemon's process.

    Returns:
        How many connections there were.

    Raises:
        OSError: The process is gone, or this one may not look into it (it takes CAP_SYS_PTRACE and CAP_NET_ADMIN).
    """
    woken = 0
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if _is_socket(entry):
                woken += _wake(pidfd, int(entry.name))
    finally:
        os.close(pidfd)
    return woken


def _is_socket(entry: Path) -> bool:
    try:
        return str(entry.readlink()).startswith("socket:")
    except FileNotFoundError:  # closed meanwhile
        return False


def _wake(pidfd: int, fd: int) -> bool:
    ours = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    if ours < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"descriptor {fd}: {os.strerror(number)}")
    with socket.socket(fileno=ours) as sock:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        events = dict(poll.poll(0)).get(sock.fileno(), 0)
        if sock.family != socket.AF_UNIX or events & select.POLLOUT or not events & select.POLLHUP:
            return False
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ENOUGH_BYTES)
    return True
