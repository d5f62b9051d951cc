"""How long a person waits for `sendense-ctl`: its help, a TAB that asks the server, a list."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Goal, Row, in_turns, run_script

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode

CTL = Path(sys.executable).with_name("sendense-ctl")
RUNS = 9
HELP = Goal(300, better="lower")
TAB = Goal(500, better="lower")


def rows() -> list[Row]:
    """Measures on a node with one VM and one backup."""
    home = Path(tempfile.mkdtemp(prefix="bench-cli-", dir="/var/tmp"))  # a short path, for sockets
    try:
        with RunningNode(home) as node:
            LabClient(home).create_vm("pgtest2", ["16M:blank"])
            node.run("sendense-ctl", "backup", "start", "--vm", "pgtest2", "--type", "full")
            return _measure(node.environment)
    finally:
        shutil.rmtree(home)


def _measure(environment: dict[str, str]) -> list[Row]:
    def run(*arguments: str, **variables: str) -> None:
        subprocess.run([CTL, *arguments], env=environment | variables, check=True, stdout=subprocess.DEVNULL)

    def tab(line: str) -> None:
        words = str(len(line.split(" ")) - 1)
        run(_SENDENSE_CTL_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=words)

    taken = in_turns(
        {
            "python3 -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True),
            "sendense-ctl --help": lambda: run("--help"),
            "TAB: name of a command": lambda: tab("sendense-ctl ba"),
            "TAB: backup ids from the server": lambda: tab("sendense-ctl backup get --backup-id "),
            "TAB: VM names from the server": lambda: tab("sendense-ctl backup start --vm "),
            "sendense-ctl backup list": lambda: run("backup", "list"),
        },
        RUNS,
    )
    goals = {"sendense-ctl --help": HELP} | {name: TAB for name in taken if name.startswith("TAB")}
    return [
        Row.of(name, [1000 * each for each in samples], unit="ms", goal=goals.get(name))
        for name, samples in taken.items()
    ]


if __name__ == "__main__":
    run_script(__doc__, rows)
