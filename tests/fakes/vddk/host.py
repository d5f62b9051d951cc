"""The stand-in for what VMware's library talks to: checks who asks and for what, and gives the snapshot's disk.

`plugin.c` asks it over a Unix socket in libdir each time that a client opens the disk. Its answers are VixDiskLib's:
another thumbprint is an "Unknown error".
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sendense_lab.client import LabClient

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "plugin.c"
LIBRARY = Path("lib64/libvixDiskLib.so.8")


def build_plugin(directory: Path, source: Path = SOURCE, name: str = "nbdkit-vddk-plugin.so") -> Path:
    """Compiles a plugin and returns its path; skips the test where nbdkit's headers or a compiler are missing."""
    if not Path("/usr/include/nbdkit-plugin.h").exists():
        pytest.skip("the stand-in for VDDK needs nbdkit-plugin-dev (deploy/setup test)")
    return _compile(source, directory / name)


def build_library(directory: Path) -> Path:
    """Compiles the stand-in for VMware's library into a directory of VDDK's layout, which it returns."""
    library = directory / LIBRARY
    library.parent.mkdir(parents=True)
    _compile(FOLDER / "disklib.c", library)
    return directory


def real_plugin() -> str:
    """Returns nbdkit's own vddk plugin; skips the test where it is not installed.

    `SENDENSE_TEST_VDDK_PLUGIN` names one that is not on nbdkit's path (Debian 12 has none).
    """
    plugin = os.environ.get("SENDENSE_TEST_VDDK_PLUGIN", "vddk")
    if subprocess.run(["nbdkit", "--version", plugin], capture_output=True, check=False).returncode:
        pytest.skip("nbdkit's own vddk plugin is not installed: `nbdkit vddk --dump-plugin` does not work")
    return plugin


def _compile(source: Path, output: Path) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("the stand-ins for VDDK need a C compiler (deploy/setup test)")
    options = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{FOLDER}"]
    subprocess.run(["cc", *options, "-o", str(output), str(source)], check=True)
    return output


@dataclass
class VddkHost:
    """What the plugin is told.

    Attributes:
        lab: Where the disks are.
        libdir: The library's directory, as the agent is told.
        plugin: The compiled plugin.
        dies_after: nbdkit aborts once it has served so many bytes; 0 for never.
        slow_ns: Each read takes at least so long.
        asked: What every opened handle asked, without the password.
    """

    lab: LabClient
    libdir: Path
    plugin: Path | str
    dies_after: int = 0
    slow_ns: int = 0
    asked: list[dict[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, asked: dict[str, str]) -> str:
        """Returns what the plugin is told."""
        right = self.lab.credentials()
        with self._lock:
            self.asked.append({name: value for name, value in asked.items() if name != "password"})
            if (asked["server"], asked.get("port", "443")) != (right["host"], str(right["port"])):
                return "ERROR VixDiskLib_ConnectEx: Cannot connect to host"
            if asked["thumbprint"].upper() != right["sha1"].upper():
                return "ERROR VixDiskLib_Open: Unknown error"
            if (asked["user"], asked["password"]) != (right["username"], right["password"]):
                return "ERROR VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password"
            path = self._disk(asked["vm"].removeprefix("moref="), asked["snapshot"], asked["file"])
        return (
            f"OK {self.dies_after} {self.slow_ns} {path}" if path else "ERROR VixDiskLib_Open: The file was not found"
        )

    def _disk(self, vm: str, snapshot: str, file: str) -> Path | None:
        image = self.libdir / f"{hashlib.sha256(f'{vm} {snapshot} {file}'.encode()).hexdigest()[:16]}.raw"
        if image.exists():
            return image
        known = {each["moref"]: each for each in self.lab.vms()}
        # The VM runs on a delta above the file that the snapshot names.
        disks = {_base(disk["file"]): disk["uuid"] for disk in known.get(vm, {"disks": []})["disks"]}
        uuid = disks.get(_base(file))
        if uuid is None or snapshot not in {each["moref"] for each in self.lab.snapshots(vm)}:
            return None
        self.lab.export(vm, uuid, image, snapshot=snapshot)
        return image

    @contextmanager
    def running(self) -> Iterator[VddkHost]:
        """Answers for the time of the block."""
        host = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                lines = iter(self.rfile.readline, b"\n")
                asked = dict(line.decode().rstrip("\n").split("=", 1) for line in lines if line)
                self.wfile.write(host.answer(asked).encode() + b"\n")

        library = self.libdir / LIBRARY
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
        with socketserver.ThreadingUnixStreamServer(str(self.libdir / "host.sock"), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def _base(file: str) -> str:
    return re.sub(r"-[0-9]{6}\.vmdk$", ".vmdk", file)
