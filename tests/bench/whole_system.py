"""Rates and memory of the whole system: vCenter of the lab, agent, tunnel, node. Not part of `make bench`.

It takes some minutes and 25 GiB: `.venv/bin/python tests/bench/whole_system.py [--data-path tunnel|direct]
[--written-gib 10] [--json FILE]`. It measures a VM with a sparse disk of 500 GB and a written one (full, nothing
changed, 1 GiB changed), five VMs one after the other and at once, and the memory of every process meanwhile.
"""

# ruff: noqa: T201 - a benchmark prints

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from figures import GIB, MIB, Goal, Row, encode, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api

PART = GIB
VMS = 5
VM_MIB = 512
PATIENCE_SECONDS = 3600.0


class Memory:
    """Samples the resident memory of a process tree; the most of each program is kept."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._most: dict[str, int] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @contextmanager
    def watched(self, rows: list[Row], during: str, goals: dict[str, Goal]) -> Iterator[None]:
        """Adds a row for each program that matters, with the most that one process of it had meanwhile."""
        with self._lock:
            self._most.clear()
        yield
        with self._lock:
            for program, most in sorted(self._most.items()):
                rows.append(Row.of(f"memory of {program}, {during}", [most / MIB], unit="MiB", goal=goals.get(program)))

    def _run(self) -> None:
        while not self._end.wait(0.25):
            with self._lock:
                for program, size in _programs(self._root):
                    self._most[program] = max(size, self._most.get(program, 0))

    def close(self) -> None:
        """Ends sampling."""
        self._end.set()
        self._thread.join()


WATCHED = (
    "sendense-agent",
    "sendense-tunnel",
    "sendense-repository",
    "sendense-backup",
    "qemu-storage-daemon",
    "nbdkit",
)


def _programs(root: int) -> Iterator[tuple[str, int]]:
    """Yields program and resident bytes of each process in a session or below a process."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[str, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            pages = int((entry / "statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has ended
        words = " ".join(each.decode(errors="replace") for each in command[:4])
        name = next((name for name in WATCHED if name in words or name.replace("-", "_") in words), "")
        if name:
            found[int(entry.name)] = (name, pages * os.sysconf("SC_PAGE_SIZE"))
    for pid, program in found.items():
        above = pid
        while above > 1 and above != root:
            above = parents.get(above, 0)
        if above == root:
            yield program


def back_up(api: Api, vm: str, kind: str) -> tuple[float, int]:
    """Backs a VM up; returns seconds from the request to the end, and bytes that were copied."""
    began = time.monotonic()
    backup_id = start(api, vm, kind)
    backup = finish(api, backup_id)
    return time.monotonic() - began, int(backup.get("bytes_transferred") or 0)


def start(api: Api, vm: str, kind: str) -> str:
    answer = api.post("/backup/start", {"vm_name": vm, "backup_type": kind}).raise_for_status()
    return str(answer.json()["backup_id"])


def finish(api: Api, backup_id: str) -> dict[str, object]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        backup: dict[str, object] = api.get(f"/backup/{backup_id}").raise_for_status().json()
        if backup["status"] == "completed":
            return backup
        if backup["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
            raise RuntimeError(json.dumps(backup, indent=1))
        time.sleep(0.05)


def big_vm(api: Api, lab: LabClient, random_file: Path, written_gib: int, memory: Memory, rows: list[Row]) -> None:
    """A disk of 500 GB that is empty, and one that is full."""
    lab.create_vm("big", ["500G:blank", f"{written_gib}G:blank"], small_files=0)
    for number in range(written_gib):
        lab.guest_write("big", 1, number * GIB, file=random_file)
    print("the VM is there", flush=True)
    agent_goal = {"sendense-agent": Goal(256, 96, "lower")}
    with memory.watched(rows, "full of 510 GB", agent_goal):
        seconds, copied = back_up(api, "big", "full")
    print(f"full: {seconds:.1f} s, {copied} bytes", flush=True)
    rows.append(Row.of(f"full of 500 GB sparse and {written_gib} GiB written", [seconds], unit="s"))
    rate = written_gib * GIB / seconds
    rows.append(Row.of("its rate over the written bytes", [rate / GIB], unit="GiB/s"))
    rows.append(
        Row.of(
            "100 GB at that rate (the spec asks for 5 minutes)", [100e9 / rate], unit="s", goal=Goal(300, None, "lower")
        )
    )
    nothing = [back_up(api, "big", "incremental")[0] for _ in range(3)]
    rows.append(Row.of("increment of nothing, request to restore point", nothing, unit="s"))
    lab.guest_write("big", 1, 3 * GIB // 2, file=random_file)
    with memory.watched(rows, "increment of 1 GiB", agent_goal):
        seconds, copied = back_up(api, "big", "incremental")
    rate = GIB / seconds
    rows.append(Row.of("increment of 1 GiB", [seconds], unit="s"))
    rows.append(
        Row.of("5 GB at that rate (the spec asks for 30 seconds)", [5e9 / rate], unit="s", goal=Goal(30, None, "lower"))
    )
    print(f"increment: {seconds:.1f} s, {copied} bytes", flush=True)


def five_vms(api: Api, lab: LabClient, random_file: Path, memory: Memory, rows: list[Row]) -> None:
    """Full backups of five VMs one after the other, then of five more at once."""
    piece = random_file.with_name("piece")
    with random_file.open("rb") as source:
        piece.write_bytes(source.read(VM_MIB * MIB))
    for number in range(2 * VMS):
        lab.create_vm(f"vm-{number}", [f"{VM_MIB}M:blank"], small_files=0)
        lab.guest_write(f"vm-{number}", 0, 0, file=piece)
    began = time.monotonic()
    for number in range(VMS):
        back_up(api, f"vm-{number}", "full")
    sequential = time.monotonic() - began
    with memory.watched(rows, "five VMs at once", {"sendense-agent": Goal(256, 96, "lower")}):
        began = time.monotonic()
        ids = [start(api, f"vm-{number}", "full") for number in range(VMS, 2 * VMS)]
        ends = {}
        while len(ends) < VMS:
            for backup_id in ids:
                backup = api.get(f"/backup/{backup_id}").raise_for_status().json()
                if backup["status"] in ("failed", "cancelled"):
                    raise RuntimeError(json.dumps(backup, indent=1))
                if backup["status"] == "completed":
                    ends.setdefault(backup_id, time.monotonic() - began)
            time.sleep(0.05)
    together = max(ends.values())
    size = VMS * VM_MIB / 1024
    rows.append(Row.of("five VMs one after the other", [size / sequential], unit="GiB/s"))
    rows.append(Row.of("five VMs at once", [size / together], unit="GiB/s"))
    rows.append(
        Row.of("five jobs together", [sequential / together], goal=Goal(0.9, 1.15), against="one after another")
    )
    rows.append(Row.of("last to finish ÷ first", [together / min(ends.values())], goal=None))


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", choices=("tunnel", "direct"), default="tunnel")
    parser.add_argument("--written-gib", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="whole-", dir="/var/tmp"))
    rows: list[Row] = []
    try:
        random_file = home / "random"
        with random_file.open("wb") as stream:
            for _ in range(GIB // MIB):
                stream.write(random.randbytes(MIB))
        with RunningNode(home, SENDENSE_AGENT_DATA_PATH=arguments.data_path) as node:
            memory = Memory(node.pid)
            api, lab = Api(node), LabClient(home)
            try:
                five_vms(api, lab, random_file, memory, rows)
                big_vm(api, lab, random_file, arguments.written_gib, memory, rows)
            finally:
                memory.close()
                api.client.close()
                print(f"data path {arguments.data_path}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
                print(table(rows), flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(encode(rows), indent=1))


if __name__ == "__main__":
    main()
