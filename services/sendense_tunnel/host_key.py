"""The tunnel's SSH host key: made once, kept in a file that only its owner reads, pinned by every agent."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh

_ALGORITHM = "ssh-ed25519"


class HostKeyUnsafe(Exception):
    """The host key's file can be read or replaced by others: whoever has it can pose as this tunnel.

    Attributes:
        path: the file.
        mode: its permission bits.
    """

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(
            f"{path} has mode {mode:04o}: others can read it. Make a new key (remove it and its .pub, "
            "start the tunnel, pin the new one at the agents) and keep it at 0600."
        )
        self.path = path
        self.mode = mode


def load_or_create_host_key(path: Path) -> asyncssh.SSHKey:
    """Returns the host key of `path`, making it (0600) with its public half (`.pub`) on first use.

    Raises:
        HostKeyUnsafe: others may read the file.
        asyncssh.KeyImportError: the file holds no key.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_new(path, asyncssh.generate_private_key(_ALGORITHM, comment="sendense-tunnel"))
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise HostKeyUnsafe(path, mode)
    key = asyncssh.read_private_key(path)
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        public.write_bytes(key.export_public_key())
    return key


def _write_new(path: Path, key: asyncssh.SSHKey) -> None:
    """Puts the whole key in place at once, so that a crash never leaves a part of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.export_private_key())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
