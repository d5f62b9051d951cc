"""Removing what a killed server left: mounts, loop devices, qemu-storage-daemons, files of unfinished operations.

Only things below the lab's own folder are touched, so labs with different homes never disturb each other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import structlog

from sendense_lab.errors import ProgramError
from sendense_lab.programs import run

log = structlog.get_logger(__name__)

EXIT_SECONDS = 10.0


def clean(root: Path) -> None:
    """Undoes everything below the lab's folder `root` that a former server still had mounted or running."""
    operations = root / "run"
    for mount in reversed(_mounts_below(root)):
        if mount.parent.name != "mnt":
            continue  # the FUSE exports come last
        log.info("unmounting a leftover", mount=str(mount))
        _force(mount)
    for device in _loops_below(root):
        log.info("detaching a leftover", device=device)
        run("losetup", "--detach", device)
    for pid_file in operations.glob("*/*/qsd.pid"):
        _end(pid_file, operations)
    for mount in reversed(_mounts_below(root)):
        _force(mount)
    shutil.rmtree(operations, ignore_errors=True)


def _force(mount: Path) -> None:
    """Unmounts in order if possible, else hides it: its daemon may be dead already."""
    try:
        run("umount", str(mount))
    except ProgramError:
        run("umount", "--lazy", str(mount))


def _mounts_below(root: Path) -> list[Path]:
    mounts: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        escaped = line.split(" ")[4]
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), escaped))
        if path.is_relative_to(root):
            mounts.append(path)
    return mounts


def _loops_below(root: Path) -> list[str]:
    answer = run("losetup", "--list", "--json", "--output", "NAME,BACK-FILE")
    if not answer.strip():
        return []
    devices = json.loads(answer)["loopdevices"]
    return [entry["name"] for entry in devices if Path(entry["back-file"] or "/").is_relative_to(root)]


def _end(pid_file: Path, operations: Path) -> None:
    """Ends a leftover daemon; its command line must name our folder, for process ids are used again."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if str(operations).encode() not in command:
            return
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        log.info("ending a leftover daemon", pid=pid)
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        deadline = time.monotonic() + EXIT_SECONDS
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        if _runs(pid):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
