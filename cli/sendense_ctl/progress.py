"""Follows a running backup: bars on a terminal, a line per phase elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_client import Unavailable
from sendense_ctl.connection import Gateway
from sendense_ctl.output import NARROW, console, printable

FINAL = ("completed", "failed", "cancelled")

RECONNECT_SECONDS = 30.0
"""How long a broken watch is joined again before giving up: a restart of a service takes less."""


def watch(gateway: Gateway, channel: grpc.Channel, backup_id: str) -> Iterator[backup_pb2.Backup]:
    """Yields the backup whenever it changed; ends with a final status. Joins again after a broken connection."""
    stub = backup_pb2_grpc.BackupServiceStub(channel)
    request = backup_pb2.WatchBackupRequest(backup_id=backup_id)
    broken_since: float | None = None
    while True:
        try:
            for backup in stub.WatchBackup(request, metadata=gateway.metadata()):
                broken_since = None
                yield backup
                if backup.status in FINAL:
                    return
        except Unavailable:
            broken_since = broken_since or time.monotonic()
            if time.monotonic() - broken_since > RECONNECT_SECONDS:
                raise
        time.sleep(0.5)


@contextmanager
def noticing_interrupts() -> Iterator[Callable[[], None]]:
    """Yields a check that raises KeyboardInterrupt if Ctrl-C was pressed.

    Python raises it wherever the program is just then. Where that is a callback of gRPC, the exception is dropped and
    the program would go on as if nobody had pressed anything.
    """
    pressed = threading.Event()

    def press(*_: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def follow(gateway: Gateway, channel: grpc.Channel, backup_id: str, *, quiet: bool) -> backup_pb2.Backup:
    """Shows progress until the backup has ended and returns it."""
    if quiet or not console.is_terminal:
        return _follow_lines(gateway, channel, backup_id, quiet=quiet)
    last = backup_pb2.Backup()
    wide = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    narrow = (TaskProgressColumn(), TimeRemainingColumn())
    figures = wide if console.width >= NARROW else narrow
    bars = Progress(TextColumn("{task.description}"), BarColumn(bar_width=None), *figures, console=console)
    tasks: dict[str, TaskID] = {}
    with noticing_interrupts() as check, bars:
        for last in watch(gateway, channel, backup_id):
            check()
            for disk in last.disks:
                label = printable(disk.label) or f"disk {disk.disk_id}"
                if label not in tasks:
                    tasks[label] = bars.add_task(label, total=None)
                total = disk.total_bytes or (1 if disk.status == "completed" else None)
                done = disk.bytes_transferred if disk.total_bytes else (1 if disk.status == "completed" else 0)
                bars.update(tasks[label], description=f"{label} {disk.backup_type}", total=total, completed=done)
    return last


def _follow_lines(gateway: Gateway, channel: grpc.Channel, backup_id: str, *, quiet: bool) -> backup_pb2.Backup:
    with noticing_interrupts() as check:
        return _print_phases(gateway, channel, backup_id, check, quiet=quiet)


def _print_phases(
    gateway: Gateway, channel: grpc.Channel, backup_id: str, check: Callable[[], None], *, quiet: bool
) -> backup_pb2.Backup:
    last, phase = backup_pb2.Backup(), ""
    for last in watch(gateway, channel, backup_id):
        check()
        if last.progress.phase != phase and last.status not in FINAL and not quiet:
            phase = last.progress.phase
            console.print(f"{last.status}: {phase}" if phase else last.status)
    return last
