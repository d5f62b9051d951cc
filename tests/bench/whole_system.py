"""Rates and memory of the whole system: vCenter of the lab, agent, tunnel, node.

`make bench-whole` runs it in full, some minutes and 25 GiB: `.venv/bin/python tests/bench/whole_system.py
[--data-path tunnel|direct] [--written-gib 10] [--json FILE]`; `make bench` has a smaller one (`bench_whole.py`). It
measures five VMs one after the other and at once, increments without a change, a VM with a sparse disk of 500 GB and a
written one (full, nothing changed, 1 GiB changed), one with five disks, and the memory of every process meanwhile.
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
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from figures import GIB, INTERVALS, MIB, Goal, Row, encode, goals, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api

VMS = 5
PATIENCE_SECONDS = 3600.0
AGENT_GOAL = {"sendense-agent": Goal(256, 96, "lower")}
NOTHINGS = 5


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        data_path: `tunnel`, or `direct` for an agent on the node's machine.
        written_gib: Size of the written disk beside the one of 500 GB; 2 at least.
        vm_mib: Size of each of the five VMs' disks, and of each of the five disks of one VM.
    """

    data_path: str = "tunnel"
    written_gib: int = 10
    vm_mib: int = 512


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
    ended = time.monotonic()
    INTERVALS.setdefault(f"{kind} of {vm}", []).append((began, ended))
    return ended - began, int(backup.get("bytes_transferred") or 0)


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
    with memory.watched(rows, f"full of 500 GB and {written_gib} GiB", AGENT_GOAL):
        seconds, copied = back_up(api, "big", "full")
    print(f"full: {seconds:.1f} s, {copied} bytes", flush=True)
    rows.append(Row.of(f"full of 500 GB sparse and {written_gib} GiB written", [seconds], unit="s"))
    rate = written_gib * GIB / seconds
    rows.append(Row.of("its rate over the written bytes", [rate / GIB], unit="GiB/s"))
    rows.append(
        Row.of(
            "100 GB at that rate (the spec asks for 5 minutes)",
            [100e9 / rate],
            unit="s",
            goal=Goal(300, None, "lower"),
            way="full of big",
        )
    )
    nothing = back_up(api, "big", "incremental")[0]
    rows.append(Row.of("increment of nothing of 500 GB, its audit included", [nothing], unit="s"))
    lab.guest_write("big", 1, GIB // 2, file=random_file)
    with memory.watched(rows, "increment of 1 GiB", AGENT_GOAL):
        seconds, copied = back_up(api, "big", "incremental")
    rate = GIB / seconds
    rows.append(Row.of("increment of 1 GiB", [seconds], unit="s"))
    rows.append(
        Row.of("5 GB at that rate (the spec asks for 30 seconds)", [5e9 / rate], unit="s", goal=Goal(30, None, "lower"))
    )
    print(f"increment: {seconds:.1f} s, {copied} bytes", flush=True)


def nothing_changed(api: Api, rows: list[Row]) -> None:
    """Increments of a VM that did not change: what copying and sealing cost when there is nothing to do."""
    taken, fixed = [], []
    for _ in range(NOTHINGS):
        began = time.monotonic()
        backup_id = start(api, "vm-0", "incremental")
        finish(api, backup_id)
        taken.append(time.monotonic() - began)
        fixed.append(_from_layer_to_sealed(api, backup_id))
    rows.append(Row.of("increment of nothing, request to restore point", taken, unit="s"))
    rows.append(Row.of("fixed cost of an increment, layer made to sealed", fixed, unit="s", goal=Goal(1, 0.2, "lower")))


def _from_layer_to_sealed(api: Api, backup_id: str) -> float:
    """Returns the seconds between the job log's lines of a made and of a sealed layer."""
    entries = api.get(f"/backup/{backup_id}/log").raise_for_status().json()["entries"]
    moments = {entry["step"]: datetime.fromisoformat(entry["created_at"]) for entry in entries}
    return (moments["seal"] - moments["layer"]).total_seconds()


def five_disks(api: Api, lab: LabClient, piece: Path, vm_mib: int, memory: Memory, rows: list[Row]) -> None:
    """One VM with five disks, which are copied at once."""
    lab.create_vm("five-disks", [f"{vm_mib}M:blank"] * 5, small_files=0)
    for number in range(5):
        lab.guest_write("five-disks", number, 0, file=piece)
    with memory.watched(rows, "five disks at once", AGENT_GOAL):
        seconds, copied = back_up(api, "five-disks", "full")
    rows.append(Row.of("five disks of a VM at once", [copied / GIB / seconds], unit="GiB/s"))


def five_vms(api: Api, lab: LabClient, piece: Path, vm_mib: int, memory: Memory, rows: list[Row]) -> None:
    """Full backups of five VMs one after the other, then of five more at once."""
    for number in range(2 * VMS):
        lab.create_vm(f"vm-{number}", [f"{vm_mib}M:blank"], small_files=0)
        lab.guest_write(f"vm-{number}", 0, 0, file=piece)
    began = time.monotonic()
    for number in range(VMS):
        back_up(api, f"vm-{number}", "full")
    sequential = time.monotonic() - began
    with memory.watched(rows, "five VMs at once", AGENT_GOAL):
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
    size = VMS * vm_mib / 1024
    rows.append(Row.of("five VMs one after the other", [size / sequential], unit="GiB/s"))
    rows.append(Row.of("five VMs at once", [size / together], unit="GiB/s"))
    rows.append(
        Row.of("five jobs together", [sequential / together], goal=Goal(0.9, 1.15), against="one after another")
    )
    rows.append(Row.of("last to finish ÷ first", [together / min(ends.values())], goal=None))


def measure(sizes: Sizes) -> list[Row]:
    """Measures everything on a node of its own."""
    home = Path(tempfile.mkdtemp(prefix="whole-", dir="/var/tmp"))
    rows: list[Row] = []
    try:
        random_file, piece = home / "random", home / "piece"
        with random_file.open("wb") as stream:
            for _ in range(GIB // MIB):
                stream.write(random.randbytes(MIB))
        with random_file.open("rb") as source:
            piece.write_bytes(source.read(sizes.vm_mib * MIB))
        with RunningNode(home, SENDENSE_AGENT_DATA_PATH=sizes.data_path) as node:
            memory = Memory(node.pid)
            api, lab = Api(node), LabClient(home)
            try:
                five_vms(api, lab, piece, sizes.vm_mib, memory, rows)
                nothing_changed(api, rows)
                five_disks(api, lab, piece, sizes.vm_mib, memory, rows)
                big_vm(api, lab, random_file, sizes.written_gib, memory, rows)
            finally:
                memory.close()
                api.client.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return rows


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", choices=("tunnel", "direct"), default="tunnel")
    parser.add_argument("--written-gib", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    rows = measure(Sizes(arguments.data_path, arguments.written_gib))
    print(f"data path {arguments.data_path}, {os.cpu_count()} cores, load {load:.1f} before")
    print(f"{table(rows)}\n\nGoals\n{goals(rows)}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(encode(rows), indent=1))


if __name__ == "__main__":
    main()
