"""Row 1 against real services: a replica that was only stopped goes on after its jobs were taken over, and is refused.

A job for each of several steps: the replica stands between its look at the catalogue and its call, where only the
service's own fence can tell that the attempt is old. The other replica takes the jobs over and completes them; then the
first one makes its calls. (The exports' fence comes after the repository's; the fakes' family shows it.)
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import psycopg
import pytest
from backup_postgres import postgres_server
from backup_process import service_process
from killable import compare, kill_backup, killable_node, until
from replicas import replica

from sendense_backup.config import BackupSettings
from sendense_lab.client import LabClient
from whole_node import Api

STOPPED_AT = {
    "snapshot": ("agent", "snapshot"),
    "layer": ("repository", "layer.0"),
    "export": ("repository", "export.0"),
    "seal": ("repository", "seal.0"),
    "commit": ("repository", "commit"),
}
"""By VM the service that must refuse, and the step before whose call to it the replica is stopped."""


@pytest.mark.faults
@pytest.mark.timeout(900)  # a whole node, PostgreSQL and a second replica
async def test_a_replica_that_goes_on_is_refused_by_the_real_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_server() as server, killable_node(SENDENSE_DATABASE_URL=server.url) as node:
        lab, api = LabClient(node.home), await asyncio.to_thread(Api, node)
        for number, name in enumerate(STOPPED_AT):
            lab.create_vm(name, ["4M:blank"], seed=number)
            lab.guest_write(name, 0, 1 << 20, seed=number, length=256 << 10)
        plan, marks = node.home / "plan.json", node.home / "marks"
        plan.write_text(json.dumps({name: [step, "begins"] for name, (_, step) in STOPPED_AT.items()}))
        kill_backup(node, api)
        jobs = {}
        for name in STOPPED_AT:
            answer = api.post("/backup/start", {"vm_name": name, "backup_type": "full"})
            assert answer.status_code == 200, answer.text
            jobs[name] = answer.json()["backup_id"]
        until(lambda: {each.name for each in marks.iterdir()} == set(STOPPED_AT), "every job stands at its step")
        pid = int((node.home / "backup.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            _cut_off(server.plain_url)
            for name, value in node.environment.items():
                monkeypatch.setenv(name, value)
            settings = BackupSettings(SENDENSE_HOME=node.home, SENDENSE_DATABASE_URL=server.url)  # type: ignore[call-arg]
            async with service_process(replica(settings, tmp_path / "other")) as (_, second):
                for name, job in jobs.items():
                    ended = await second.ended(job)
                    assert (ended.status, ended.error_message) == ("completed", ""), name
        finally:
            for name in STOPPED_AT:
                (marks / f"{name}.go").touch()
            os.kill(pid, signal.SIGCONT)
        until(lambda: refused(node.home) == {(name, jobs[name]) for name in STOPPED_AT}, "each late call is refused")
        for name, job in jobs.items():
            points = api.get("/backup/list", vm_name=name).json()["backups"]
            assert [(each["backup_id"], each["status"]) for each in points] == [(job, "completed")]
            compare(api, lab, name, job, tmp_path)
            assert [shot for shot in lab.snapshots(name) if not shot["kept"]] == []
        api.client.close()


def refused(home: Path) -> set[tuple[str, str]]:
    """Returns whose calls services have refused as ones of an old attempt: the VM and the job."""
    late = re.compile(r"attempt 1 of (backup-(\w+)-\d+) (?:is over|was overtaken)")
    found = set()
    for name, service in STOPPED_AT.items():
        log = (home / "log" / f"{service[0]}.log").read_text()
        found |= {(vm, job) for job, vm in late.findall(log) if vm == name}
    return found


def _cut_off(url: str) -> None:
    """Ends the connections that hold the replicas' locks, as a broken network would."""
    with psycopg.connect(url, autocommit=True, connect_timeout=30) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'backup-%'"
        )
