"""Row 1 against real services: lab vCenter, agent, tunnel, exports, nbdd and repository; the backup service is killed.

A VM for each step of the backup workflow and of what is done to restore points; all jobs hang at their steps, the
process is killed, started again, and every layer is compared with the snapshot that it was made from.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sendense_backup.workflows.registry import WORKFLOWS
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api, fresh_node, kept_snapshot

DISK = "16M:ext4"
UNREACHED = {"turn_full"}
"""Only where vCenter cannot say what changed; the fakes' family kills there."""
SECONDS = 240.0


def plan() -> dict[str, tuple[str, str]]:
    """A VM's name for each (workflow, step)."""
    found = [
        (name, f"{step.name}.0" if step.per_disk else step.name)
        for name in ("backup", "delete", "consolidate", "verify")
        for step in WORKFLOWS[name].steps
        if step.name not in UNREACHED
    ]
    return {f"k{number}": each for number, each in enumerate(found)}


@pytest.fixture(scope="module")
def killable() -> Iterator[RunningNode]:
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


@pytest.mark.faults
@pytest.mark.timeout(600)  # a whole node, and twenty VMs
def test_every_layer_is_byte_identical_after_a_kill_at_each_step(killable: RunningNode, tmp_path: Path) -> None:
    lab, api, steps = LabClient(killable.home), Api(killable), plan()
    changed = [name for name, (workflow, _) in steps.items() if workflow != "backup"]
    for number, name in enumerate(steps):
        lab.create_vm(name, [DISK], small_files=4, seed=number)
    fulls = run_all(api, list(steps), "full")
    for name in changed:
        lab.guest_write(name, 0, 8 << 20, seed=1, length=256 << 10)
    increments = run_all(api, changed, "incremental")
    for name in set(steps) - set(changed):
        lab.guest_write(name, 0, 8 << 20, seed=2, length=256 << 10)
    (killable.home / "plan.json").write_text(
        json.dumps({name: [step, "recorded"] for name, (_, step) in steps.items()})
    )
    kill_backup(killable, api)
    jobs = {name: start(api, workflow, name, fulls, increments) for name, (workflow, _) in steps.items()}
    marks = killable.home / "marks"
    until(lambda: {each.name for each in marks.iterdir()} == set(steps), "every job hangs at its step")
    (killable.home / "plan.json").unlink()
    kill_backup(killable, api)
    ended = {name: finished(api, find_job(api, jobs[name], name, steps[name][0])) for name in steps}
    assert {
        f"{steps[name]}: {job['error_message']}" for name, job in ended.items() if job["status"] != "completed"
    } == set()
    kept = {
        name: ended[name]["job_id"] if workflow == "backup" else increments[name]
        for name, (workflow, _) in steps.items()
    }
    with ThreadPoolExecutor(2) as together:
        list(together.map(lambda name: compare(api, lab, name, kept[name], tmp_path), steps))
    assert [shot for name in steps for shot in lab.snapshots(name) if not shot["kept"]] == []
    api.client.close()


def run_all(api: Api, names: list[str], kind: str) -> dict[str, str]:
    """Backs VMs up, all at once; returns the backups' ids."""
    started = {}
    for name in names:
        answer = api.post("/backup/start", {"vm_name": name, "backup_type": kind})
        assert answer.status_code == 200, answer.text
        started[name] = answer.json()["backup_id"]
    for name, backup_id in started.items():
        assert api.finished(backup_id, SECONDS)["status"] == "completed", name
    return started


def start(api: Api, workflow: str, name: str, fulls: dict[str, str], increments: dict[str, str]) -> str:
    """Starts a job of a workflow; returns its id, or nothing where the answer waits for the job."""
    if workflow == "delete":
        # The answer waits for the job, which hangs: nobody waits for the answer.
        threading.Thread(target=lambda: _ignore(lambda: api.delete(f"/backup/{fulls[name]}")), daemon=True).start()
        return ""
    if workflow == "backup":
        answer = api.post("/backup/start", {"vm_name": name, "backup_type": "incremental"})
    elif workflow == "verify":
        answer = api.post(f"/backup/{increments[name]}/verify", {})
    else:
        points = {"first_backup_id": fulls[name], "last_backup_id": increments[name]}
        answer = api.post("/backup/consolidate", points)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return str(body.get("job_id") or body["backup_id"])


def _ignore(call: Callable[[], object]) -> None:
    try:
        call()
    except httpx.HTTPError:
        return


def find_job(api: Api, job_id: str, name: str, workflow: str) -> str:
    if job_id:
        return job_id
    return str(api.get("/jobs", vm_name=name, kind=workflow).json()["jobs"][0]["job_id"])


def finished(api: Api, job_id: str) -> dict[str, object]:
    found: dict[str, object] = {}

    def ended() -> bool:
        found.update(api.get(f"/jobs/{job_id}").raise_for_status().json())
        return found["status"] in ("completed", "failed", "cancelled")

    until(ended, f"{job_id} ends")
    return found


def compare(api: Api, lab: LabClient, name: str, backup_id: str, folder: Path) -> None:
    """Fails unless a restore point equals the snapshot that it was made from."""
    raw = folder / f"{name}.raw"
    lab.export(name, 0, raw, snapshot=kept_snapshot(lab, name, backup_id))
    layer = api.get(f"/backup/{backup_id}").json()["disks"][0]["path"]
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), layer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    raw.unlink()
