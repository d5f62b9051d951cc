"""Row 1 against real services: lab vCenter, agent, tunnel, exports, nbdd and repository; the backup service is killed.

A VM for each step of the backup workflow and of what is done to restore points; all jobs hang at their steps, the
process is killed, started again, and every layer is compared with the snapshot that it was made from. A sweep is about
no VM and runs alone: it hangs at its first step with the others, and the process is killed once more at each other one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from killable import SECONDS, compare, kill_backup, killable_node, until

from sendense_backup.workflows.registry import WORKFLOWS
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api

DISK = "16M:ext4"
TURNED_FULL = "turn_full.0"
"""Only where vCenter cannot say what changed: that VM's queries fail."""
SWEEP = "all"
"""What stands in a sweep's id for a VM's name."""


def plan() -> dict[str, tuple[str, str]]:
    """A VM's name for each (workflow, step)."""
    found = [
        (name, f"{step.name}.0" if step.per_disk else step.name)
        for name in ("backup", "delete", "consolidate", "retention", "verify")
        for step in WORKFLOWS[name].steps
    ]
    return {f"k{number}": each for number, each in enumerate(found)}


@pytest.fixture(scope="module")
def killable() -> Iterator[RunningNode]:
    with killable_node(SENDENSE_BACKUP_SWEEP_MINUTES="0.1") as node:
        yield node


@pytest.mark.faults
@pytest.mark.timeout(900)  # a whole node, and thirty VMs
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
    (turned,) = (name for name, (_, step) in steps.items() if step == TURNED_FULL)
    lab.set_fault("cbt-error", vm=turned, query="changed", times=None)
    plan_file, (sweep, *sweeps) = killable.home / "plan.json", [step.name for step in WORKFLOWS["sweep"].steps]
    hang = {name: [step, "recorded"] for name, (_, step) in steps.items()}
    plan_file.write_text(json.dumps({**hang, SWEEP: [sweep, "recorded"]}))
    kill_backup(killable, api)
    jobs = {name: start(api, workflow, name, fulls, increments) for name, (workflow, _) in steps.items()}
    marks = killable.home / "marks"
    until(lambda: {each.name for each in marks.iterdir()} == {*steps, SWEEP}, "every job hangs at its step")
    (swept,) = api.get("/jobs", kind="sweep", status="running").json()["jobs"]
    for sweep in sweeps:
        (marks / SWEEP).unlink()
        plan_file.write_text(json.dumps({SWEEP: [sweep, "recorded"]}))
        kill_backup(killable, api)
        until((marks / SWEEP).exists, f"the sweep hangs at {sweep}")
    plan_file.unlink()
    kill_backup(killable, api)
    ended = {name: finished(api, find_job(api, jobs[name], name, steps[name][0])) for name in steps}
    assert {
        f"{steps[name]}: {job['error_message']}" for name, job in ended.items() if job["status"] != "completed"
    } == set()
    assert finished(api, swept["job_id"])["status"] == "completed"
    kept = {name: newest_point(api, name) for name in steps}
    assert {name for name in steps if kept[name] != increments.get(name)} == {
        name for name, (workflow, _) in steps.items() if workflow in ("backup", "retention")
    }
    assert api.get(f"/backup/{kept[turned]}").json()["backup_type"] == "full"
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
    if workflow == "retention":
        # It follows the backup of a policy's run.
        spec = {"name": name, "cron": "0 0 1 1 *", "include": [{"name": name}], "retention": {"keep_last": 1}}
        for path, body in (("/policies", {"spec": spec}), (f"/policies/{name}/run", {})):
            answer = api.post(path, body)
            assert answer.status_code == 200, answer.text
        return ""
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


def newest_point(api: Api, name: str) -> str:
    """Returns the newest restore point of a VM."""
    jobs = api.get("/jobs", vm_name=name, kind="backup", status="completed").json()["jobs"]
    return str(jobs[0]["job_id"])
