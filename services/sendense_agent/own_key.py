"""The agent's own SSH key: made on its first start, never leaves its machine; the public half is what is enrolled."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh


class KeyUnsafe(Exception):
    """Others can read the agent's key.

    Attributes:
        path: the file.
        mode: its permission bits.
    """

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(
            f"{path} has mode {mode:04o}: others can read it. Remove it and its .pub, start the agent, enrol it."
        )
        self.path = path
        self.mode = mode


def load_or_create_key(path: Path, comment: str) -> asyncssh.SSHKey:
    """Returns the key of `path`, making it (ssh-ed25519, 0600) with its public half (`.pub`) on first use.

    Raises:
        KeyUnsafe: Others can read the file.
        asyncssh.KeyImportError: The file holds no key.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_new(path, asyncssh.generate_private_key("ssh-ed25519", comment=comment))
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise KeyUnsafe(path, mode)
    key = asyncssh.read_private_key(path)
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        partial = public.with_name(f".{public.name}.partial")
        partial.write_bytes(key.export_public_key())
        partial.rename(public)
    return key


def _write_new(path: Path, key: asyncssh.SSHKey) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.export_private_key())
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
