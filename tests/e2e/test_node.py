"""`make up` as a whole: the README's lines, the demo, reflection, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sendense_lab.client import LabClient
from sendense_node.running import NodeFailedError, RunningNode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"


def test_the_readmes_curl_lines_work_as_they_stand(node: RunningNode, lab: LabClient, tmp_path: Path) -> None:
    lab.create_vm("pgtest2", ["96M:ext4", "304M:xfs"], small_files=50)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "var").symlink_to(node.home)
    script = "set -euo pipefail\n" + blocks[0]
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("completed") >= 2
    assert "index.php" in done.stdout
    assert (tmp_path / "index.php").read_bytes()


def test_services_are_listed_and_called_by_reflection(node: RunningNode) -> None:
    endpoint = (node.home / "endpoint").read_text().strip()
    token = (node.home / "admin.token").read_text().strip()
    base = [BUF, "curl", "--protocol", "grpc", "--cacert", node.home / "tls" / "ca.crt"]
    headers = ["--reflect-header", "*", "-H", f"Authorization: Bearer {token}"]
    listed = subprocess.run([*base, *headers, "--list-methods", endpoint], capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    for method in ("BackupService/StartBackup", "RestoreService/MountBackup", "RepositoryService/ListRepositories"):
        assert method in listed.stdout
    url = f"{endpoint}/sendense.repository.v1.RepositoryService/ListRepositories"
    called = subprocess.run([*base, *headers, "-d", "{}", url], capture_output=True, text=True, check=False)
    assert called.returncode == 0, called.stderr
    assert [r["name"] for r in json.loads(called.stdout)["repositories"]] == ["local"]


def test_the_demo_compares_everything_and_writes_its_figures(tmp_path: Path) -> None:
    output = tmp_path / "demo.json"
    command = [sys.executable, "-m", "sendense_node.demo", "--disk", "160M:ext4", "--disk", "320M:xfs"]
    done = subprocess.run([*command, "--output", output], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(output.read_text())
    full, increment = figures["backups"]
    assert (full["backup_type"], increment["backup_type"]) == ("full", "incremental")
    assert increment["moved_per_changed"] <= 1.10
    assert increment["reduction_percent"] > 80  # above 90 at the demo's own sizes; metadata weighs more on tiny disks
    assert len(figures["compared"]) == 5


def _sendense_processes(home: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"SENDENSE_HOME={home}".encode() in environment.split(b"\0") or str(home) in command:
                found.append(f"{entry.name} {command}")
    return found


def _leftovers(home: Path) -> dict[str, list[str]]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(home) in line]
    loops = subprocess.run(["losetup", "-n", "-O", "NAME,BACK-FILE", "-l"], capture_output=True, text=True, check=True)
    sockets = [str(path) for path in home.rglob("*") if path.is_socket()]
    return {
        "processes": _sendense_processes(home),
        "mounts": mounts,
        "loops": [line for line in loops.stdout.splitlines() if str(home) in line],
        "sockets": sockets,
    }


NOTHING: dict[str, list[str]] = {"processes": [], "mounts": [], "loops": [], "sockets": []}


def test_ctrl_c_leaves_nothing_even_with_a_mount_and_a_running_backup() -> None:
    home = Path(tempfile.mkdtemp(prefix="cc-", dir="/var/tmp"))
    with RunningNode(home) as node:
        lab = LabClient(home)
        lab.create_vm("vm", ["512M:ext4"], small_files=20)
        backup = json.loads(node.run("sendense-ctl", "backup", "start", "--vm", "vm", "--type", "full", "--json"))
        node.run("sendense-ctl", "backup", "mount", "--backup-id", backup["backup_id"])
        node.run("sendense-ctl", "backup", "start", "--vm", "vm", "--type", "full", "--no-wait")
        assert _leftovers(home)["mounts"]
        node.stop(signal.SIGINT)
    assert _leftovers(home) == NOTHING, _leftovers(home)
    with RunningNode(home) as node:  # what was interrupted is taken up again
        assert json.loads(node.run("sendense-ctl", "backup", "list", "--json"))["backups"]
    assert _leftovers(home) == NOTHING
    shutil.rmtree(home)


def test_down_stops_what_up_runs() -> None:
    home = Path(tempfile.mkdtemp(prefix="dn-", dir="/var/tmp"))
    node = RunningNode(home).start()
    assert "already runs" in _refused(home)
    assert "has stopped" in node.run("sendense-node", "down")
    assert node.stop() == 0 or "has stopped" in node.output
    assert "not running" in node.run("sendense-node", "down")
    assert _leftovers(home) == NOTHING
    shutil.rmtree(home)


def _refused(home: Path) -> str:
    with pytest.raises(NodeFailedError) as caught:
        RunningNode(home).start()
    return str(caught.value)


def test_a_process_that_fails_is_named_with_its_last_lines(tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="ff-", dir="/var/tmp"))
    procfile = tmp_path / "Procfile"
    procfile.write_text("fine: sleep 60\nbroken: sh -c 'echo no such thing; exit 3'\n")
    with pytest.raises(NodeFailedError) as caught:
        RunningNode(home, SENDENSE_NODE_PROCFILE=str(procfile)).start()
    assert "broken ended with status 3" in str(caught.value)
    assert "no such thing" in str(caught.value)
    assert not [line for line in _sendense_processes(home) if str(os.getpid()) not in line]
    shutil.rmtree(home)
