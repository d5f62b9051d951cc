"""`make demo`: a lab VM with two disks is backed up fully, then incrementally, a file comes back, and a policy runs.

Everything is real but the vCenter: the commands shown are those a person types, and every layer is compared with the
snapshot that it was made from, byte for byte. A difference ends the demo with status 1. The figures go to
`build/demo.json`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import humanize
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sendense_node.running import NodeFailedError, RunningNode

VM = "pgtest2"
FILE = "/var/www/html/index.php"
POLICY = "nightly"
POLICY_SECONDS = 60.0
"""How long the policy's run may take: it backs up a VM that has hardly changed."""

console = Console(highlight=False)


class DemoFailedError(Exception):
    """Something was not as promised; the message says what."""


@dataclass(frozen=True)
class Figures:
    """One backup's figures.

    Attributes:
        backup_id: The backup.
        backup_type: `full` or `incremental`.
        seconds: From start to end, as the user waits.
        moved_bytes: Bytes read from the VM and stored.
        changed_bytes: Bytes that vCenter named as allocated (full) or changed (increment).
        reduction_percent: How much less was moved than by the full.
        moved_per_changed: `moved_bytes / changed_bytes`: the price of reading through small gaps.
    """

    backup_id: str
    backup_type: str
    seconds: float
    moved_bytes: int
    changed_bytes: int
    reduction_percent: float
    moved_per_changed: float


class Demo:
    """The demo's steps on a running node.

    Args:
        node: The node.
        work: Directory for exported and extracted files.
    """

    def __init__(self, node: RunningNode, work: Path) -> None:
        self._node = node
        self._work = work
        self.compared: list[str] = []

    def show(self, *command: str) -> None:
        """Runs a command as a person would: printed first, its output where it belongs."""
        console.print(f"[bold cyan]$ {escape(shlex.join(command))}[/]")
        program = Path(sys.executable).parent / command[0]
        if subprocess.run([program, *command[1:]], env=self._node.environment, check=False).returncode:
            raise DemoFailedError(f"`{' '.join(command)}` failed; logs are in {self._node.home / 'log'}")

    def ask(self, *command: str) -> Any:
        """Runs a command with `--json` and returns what it says."""
        try:
            return json.loads(self._node.run(*command, "--json"))
        except subprocess.CalledProcessError as error:
            raise DemoFailedError(f"`{' '.join(command)}` failed: {error.stderr}") from error

    def back_up(self, backup_type: str, full: Figures | None) -> Figures:
        """Backs the VM up and returns the figures."""
        started = time.monotonic()
        self.show("sendense-ctl", "backup", "start", "--vm", VM, "--type", backup_type)
        seconds = time.monotonic() - started
        newest = self.ask("sendense-ctl", "backup", "list", "--vm", VM)["backups"][0]
        backup = self.ask("sendense-ctl", "backup", "get", "--backup-id", newest["backup_id"])
        moved = int(backup["bytes_transferred"])
        changed = sum(int(disk["changed_bytes"]) for disk in backup["disks"])
        return Figures(
            backup_id=backup["backup_id"],
            backup_type=backup["backup_type"],
            seconds=round(seconds, 2),
            moved_bytes=moved,
            changed_bytes=changed,
            reduction_percent=round(100 * (1 - moved / full.moved_bytes), 2) if full else 0.0,
            moved_per_changed=round(moved / changed, 4),
        )

    def run_policy(self) -> None:
        """Makes a policy, shows what it would do, runs it, and shows its jobs and the log of one."""
        self.show(
            *("sendense-ctl", "policy", "create", POLICY, "--cron", "30 1 * * *", "--vm", VM),
            *("--time-zone", "Europe/Berlin", "--keep", "last=7", "--full-every-days", "7"),
        )
        self.show("sendense-ctl", "policy", "plan", POLICY)
        self.show("sendense-ctl", "policy", "run", POLICY)
        deadline = time.monotonic() + POLICY_SECONDS
        while (run := self.ask("sendense-ctl", "policy", "runs", POLICY)["runs"][0])["status"] not in (
            "completed",
            "failed",
        ):
            if time.monotonic() > deadline:
                raise DemoFailedError(f"the policy's run did not end: {run}")
            time.sleep(0.3)
        self.show("sendense-ctl", "policy", "runs", POLICY)
        if run["summary"]["completed"] != 1:
            raise DemoFailedError(f"the policy's run backed nothing up: {run}")
        self.show("sendense-ctl", "job", "list", "--limit", "5")
        newest = self.ask("sendense-ctl", "backup", "list", "--vm", VM)["backups"][0]
        self.show("sendense-ctl", "job", "log", "--job-id", newest["backup_id"])

    def compare_layers(self, figures: Figures) -> None:
        """Compares each disk's layer with the snapshot that it was made from, byte for byte."""
        backup = self.ask("sendense-ctl", "backup", "get", "--backup-id", figures.backup_id)
        taken = self.ask("sendense-lab", "vm", "snapshots", VM)["snapshots"]
        # The last one of that name: turning change tracking on needs a snapshot of its own before the first backup.
        snapshot = [each["moref"] for each in taken if each["name"] == f"sendense-{figures.backup_id}"][-1]
        with ThreadPoolExecutor(max_workers=2) as together:
            disks = enumerate(backup["disks"])
            for _ in together.map(lambda each: self._compare_layer(snapshot, each[0], each[1]["path"]), disks):
                pass
        self.compared += [f"{figures.backup_type} disk {number}" for number in range(len(backup["disks"]))]

    def _compare_layer(self, snapshot: str, number: int, layer: str) -> None:
        raw = self._work / f"snapshot-{number}.raw"
        self.ask("sendense-lab", "disk", "export", VM, str(raw), "--disk", str(number), "--snapshot", snapshot)
        command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), layer]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        raw.unlink()
        if outcome.returncode:
            raise DemoFailedError(f"{layer} differs from its snapshot: {outcome.stdout}{outcome.stderr}")

    def restore_file(self, figures: Figures) -> None:
        """Mounts the increment, extracts a file and compares it with the guest's."""
        mounted = self.ask("sendense-ctl", "backup", "mount", "--backup-id", figures.backup_id)
        self.show("sendense-ctl", "backup", "files", "--mount-id", mounted["mount_id"], "--path", "/var/www/html")
        self.show("sendense-ctl", "backup", "umount", "--mount-id", mounted["mount_id"])
        extracted, guests = self._work / "index.php", self._work / "guests.php"
        self.show(
            *("sendense-ctl", "backup", "extract", "--backup-id", figures.backup_id),
            *("--file", FILE, "--output", str(extracted)),
        )
        self._node.run("sendense-lab", "guest", "cat", VM, FILE, "--output", str(guests))
        if _sha256(extracted) != _sha256(guests):
            raise DemoFailedError(f"the extracted {FILE} differs from the guest's")
        self.compared.append(f"file {FILE}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(demo: Demo, disks: Sequence[str], share: float, work: Path) -> list[Figures]:
    """Plays the whole demo and returns the figures of both backups."""
    sizes = [argument for disk in disks for argument in ("--disk", disk)]
    demo.show("sendense-lab", "vm", "create", VM, *sizes)
    full = demo.back_up("full", None)
    demo.show("sendense-lab", "guest", "run", VM, "--share", str(share), "--seed", "7")
    page = work / "new-index.php"
    page.write_text(f"<?php echo 'changed after the full backup, {time.time()}';\n")
    demo.show("sendense-lab", "guest", "put", VM, str(page), FILE)
    increment = demo.back_up("incremental", full)
    demo.show("sendense-ctl", "backup", "chain", "--vm", VM)
    demo.restore_file(increment)
    demo.run_policy()
    console.print("Comparing each layer with its snapshot …")
    for figures in (full, increment):
        demo.compare_layers(figures)
    return [full, increment]


def _print_table(figures: Sequence[Figures]) -> None:
    table = Table(title="What was moved")
    for column in ("backup", "changed", "moved", "moved ÷ changed", "time", "reduction"):
        table.add_column(column, justify="left" if column == "backup" else "right")
    for one in figures:
        table.add_row(
            one.backup_type,
            humanize.naturalsize(one.changed_bytes, binary=True),
            humanize.naturalsize(one.moved_bytes, binary=True),
            f"{one.moved_per_changed:.3f}",
            f"{one.seconds:.1f} s",
            f"{one.reduction_percent:.1f} %" if one.backup_type == "incremental" else "",
        )
    console.print(table)


def main(
    disk: list[str] = typer.Option(["2G:ext4", "1G:xfs"], help="Size and file system; repeat for more disks."),
    share: float = typer.Option(0.05, help="Share of the guest's file bytes that changes between the backups."),
    output: Path = typer.Option(Path("build/demo.json"), help="Where the figures go."),
) -> None:
    """Backs a lab VM up fully and incrementally, gets a file back, and compares everything."""
    started = time.monotonic()
    # /var/tmp is on a disk where /tmp may be memory, and its path is short enough for Unix sockets.
    home = Path(tempfile.mkdtemp(prefix="sendense-demo-", dir="/var/tmp"))
    work = home / "demo"
    work.mkdir()
    succeeded = False
    try:
        with RunningNode(home, SENDENSE_LAB_KEEP_SNAPSHOTS="1") as node:
            console.print(f"Sendense runs in {home} ({time.monotonic() - started:.1f} s).")
            demo = Demo(node, work)
            figures = run(demo, disk, share, work)
        succeeded = True
    except (DemoFailedError, NodeFailedError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}", markup=True)
        console.print(f"State and logs are kept in {home}")
        raise typer.Exit(1) from error
    finally:
        if succeeded:
            shutil.rmtree(home)
    seconds = round(time.monotonic() - started, 1)
    _print_table(figures)
    console.print(f"Equal, byte for byte: {', '.join(demo.compared)}.")
    console.print(f"The whole demo took {seconds} s. Next: `make up` in one terminal, `sendense-ctl` in another.")
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {"backups": [asdict(one) for one in figures], "compared": demo.compared, "seconds": seconds}
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
