"""Letting the kernel work on a guest's disk: FUSE export, loop device, mount; all undone at the end.

Every guest operation works on a throw-away qcow2 overlay, so what it changed is known exactly.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sendense_lab.errors import LabError, ProgramError
from sendense_lab.programs import run
from sendense_lab.records import Filesystem

PARTITION_START = 1024 * 1024
"""Bytes before the one partition of each disk."""
PARTITION_TAIL = 1024 * 1024
"""Bytes kept after it, for the backup partition table."""
READY_SECONDS = 20.0
BUSY_SECONDS = 5.0
POLL_SECONDS = 0.002
MOUNT_OPTIONS: dict[Filesystem, str] = {"ext4": "noatime,barrier=0,noinit_itable", "xfs": "noatime,nouuid"}


@contextlib.contextmanager
def exported(graph: dict[str, Any], run_dir: Path) -> Iterator[Path]:
    """Shows an overlay as a raw, writable file for the duration of the context.

    Args:
        graph: qemu's block graph, whose node `guest` is the overlay.
        run_dir: A folder of this operation's own, for the mount point and the process id.

    Yields:
        The file.

    Raises:
        LabError: qemu-storage-daemon did not start.
    """
    target, pid_file, log = run_dir / "disk", run_dir / "qsd.pid", run_dir / "qsd.log"
    target.touch()
    argv = [
        *("qemu-storage-daemon", "--blockdev", json.dumps(graph)),
        *("--export", f"type=fuse,id=guest,node-name=guest,mountpoint={target},writable=on"),
        *("--pidfile", str(pid_file)),
    ]
    with log.open("wb") as output:
        # Its own session: Ctrl-C reaches the server only, which ends the operation in order.
        daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_until_ready(daemon, pid_file, log)
        yield target
    finally:
        status = _end(daemon)
        messages = log.read_text(errors="replace")
        _remove_export_files(run_dir)
    if status != 0:  # it may not have written out everything: the operation must not count
        raise ProgramError(["qemu-storage-daemon"], status, messages)


def _end(daemon: subprocess.Popen[bytes]) -> int:
    daemon.send_signal(signal.SIGTERM)
    try:
        return daemon.wait(READY_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        return daemon.wait()


def _wait_until_ready(daemon: subprocess.Popen[bytes], pid_file: Path, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not pid_file.exists():  # written once the export is there
        if daemon.poll() is not None:
            raise ProgramError(["qemu-storage-daemon"], daemon.returncode, log.read_text(errors="replace"))
        if time.monotonic() > deadline:
            raise LabError(f"qemu-storage-daemon was not ready after {READY_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def _remove_export_files(run_dir: Path) -> None:
    target = run_dir / "disk"
    if os.path.ismount(target):
        run("umount", "--lazy", str(target))
    for name in ("disk", "qsd.pid", "qsd.log"):
        (run_dir / name).unlink(missing_ok=True)


@contextlib.contextmanager
def loop_device(file: Path, capacity: int) -> Iterator[str]:
    """Attaches the partition inside a raw file to a loop device for the duration of the context."""
    size = capacity - PARTITION_START - PARTITION_TAIL
    device = run(
        *("losetup", "--find", "--show", "--offset", str(PARTITION_START), "--sizelimit", str(size), str(file)),
    ).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        _wait_detached(device, file)


def _wait_detached(device: str, file: Path) -> None:
    """Detaching is lazy while anybody (udev, blkid) has the device open for a moment."""
    backing = Path("/sys/block") / Path(device).name / "loop" / "backing_file"
    deadline = time.monotonic() + READY_SECONDS
    while _backing_file(backing) == str(file):
        if time.monotonic() > deadline:
            raise LabError(f"{device} is still in use {READY_SECONDS:.0f} s after it was detached")
        time.sleep(POLL_SECONDS)


def _backing_file(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def mounted(device: str, filesystem: Filesystem, at: Path, *, read_only: bool = False) -> Iterator[Path]:
    """Mounts a guest's file system for the duration of the context; unmounting writes everything out."""
    options = MOUNT_OPTIONS[filesystem] + (",ro" if read_only else "")
    run("mount", "-t", filesystem, "-o", options, device, str(at))
    try:
        yield at
    finally:
        _unmount(at)


def _unmount(at: Path) -> None:
    """Unmounts; somebody who looks into every new mount (a desktop, a monitor) may hold it for a moment."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            run("umount", str(at))
        except ProgramError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def remount_writable(at: Path) -> None:
    """Lets a file system that was mounted read-only be written."""
    run("mount", "-o", "remount,rw", str(at))
