"""Locks by name, for the time that somebody holds or waits for them.

Order, so that no two tasks wait for each other: a VM's maintenance lock or a layer's lock before the VM's lock, never
the other way round, and never a maintenance lock together with a layer's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class NamedLocks:
    """One lock for each name; a name that nobody uses costs nothing."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Holds the lock of `name` for the time of the block."""
        entry = self._entries.setdefault(name, _Entry())
        entry.users += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.users -= 1
            if not entry.users:
                del self._entries[name]


def vm_lock(repository_id: str, vm_uuid: str) -> str:
    """Returns the name of a VM's lock."""
    return f"vm {repository_id} {vm_uuid}"


def layer_lock(layer_id: str) -> str:
    """Returns the name of a layer's lock."""
    return f"layer {layer_id}"


def maintenance_lock(repository_id: str, vm_uuid: str) -> str:
    """Returns the name of the lock that deletions and consolidations of a VM take turns with."""
    return f"maintenance {repository_id} {vm_uuid}"
