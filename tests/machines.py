"""Machines of one network, as network namespaces on a bridge: a process of one reaches the others by address only.

Files are shared, so tests look into them; each machine has a `SENDENSE_HOME` of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Machines:
    """Running namespaces.

    Attributes:
        prefix: What their names begin with.
        root: Directory with one home for each.
        addresses: The address of each, by its name.
    """

    prefix: str
    root: Path
    addresses: Mapping[str, str]

    def home(self, name: str) -> Path:
        """Returns the state directory of a machine."""
        return self.root / name

    def environment(self, name: str, **further: str) -> dict[str, str]:
        """Returns the environment of a process of a machine."""
        return {**os.environ, "SENDENSE_HOME": str(self.home(name)), **further}

    def inside(self, name: str, *command: str) -> list[str]:
        """Returns a command line that runs on a machine."""
        return ["ip", "netns", "exec", f"{self.prefix}-{name}", *command]

    def python(self, name: str, *arguments: str) -> list[str]:
        """Returns a command line that runs Python on a machine."""
        return self.inside(name, sys.executable, *arguments)


@contextmanager
def machines_of(addresses: Mapping[str, str]) -> Iterator[Machines]:
    """Makes machines and takes them away; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    machines = Machines(f"s{uuid.uuid4().hex[:6]}", Path("/tmp") / f"s-{uuid.uuid4().hex[:8]}", addresses)
    machines.root.mkdir()
    hub = f"{machines.prefix}-hub"
    made = [hub]
    try:
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for name, address in addresses.items():
            space = f"{machines.prefix}-{name}"
            _ip("netns", "add", space)
            made.append(space)
            _ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", name, "netns", hub)
            _ip("-n", hub, "link", "set", name, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        yield machines
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        shutil.rmtree(machines.root)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
