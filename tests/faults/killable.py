"""A whole node whose backup service can be killed and stopped: jobs hang where `plan.json` says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api, fresh_node, kept_snapshot

SECONDS = 240.0


@contextmanager
def killable_node(**environment: str) -> Iterator[RunningNode]:
    """Runs a node with `restarted_backup.py` in the backup service's place; the lab keeps what snapshots held."""
    script = Path(__file__).with_name("restarted_backup.py")
    lines = Path("deploy/Procfile").read_text().splitlines()
    with tempfile.NamedTemporaryFile("w", suffix=".procfile") as procfile:
        for line in lines:
            own = line.startswith("backup:")
            procfile.write(f"backup: {sys.executable} {script}\n" if own else line + "\n")
        procfile.flush()
        with fresh_node(
            SENDENSE_NODE_PROCFILE=procfile.name,
            SENDENSE_BACKUP_JOBS_AT_ONCE="60",
            SENDENSE_LAB_KEEP_SNAPSHOTS="1",
            **environment,
        ) as node:
            yield node


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"it never came true that {what}"
        time.sleep(0.1)


def kill_backup(node: RunningNode, api: Api) -> None:
    """Kills the service as a power cut would, and waits until the next one serves."""
    pid_file = node.home / "backup.pid"
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid_file.read_text() not in ("", str(pid)), "it is started again")

    def answers() -> bool:
        try:
            return api.get("/jobs").status_code == 200
        except httpx.TransportError:
            return False

    until(answers, "it answers again")


def compare(api: Api, lab: LabClient, name: str, backup_id: str, folder: Path) -> None:
    """Fails unless a restore point equals the snapshot that it was made from."""
    raw = folder / f"{name}.raw"
    lab.export(name, 0, raw, snapshot=kept_snapshot(lab, name, backup_id))
    layer = api.get(f"/backup/{backup_id}").json()["disks"][0]["path"]
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), layer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    raw.unlink()
