"""Who may do what, over all services at once: limits, request ids, revocation, and the record of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import Api

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
MINE, OTHER = "acc-mine", "acc-other"


@pytest.fixture(scope="module", autouse=True)
def backups(api: Api, lab: LabClient) -> dict[str, str]:
    for name in (MINE, OTHER):
        lab.create_vm(name, ["64M:ext4"], small_files=5)
    return {name: api.back_up(name, "full")["backup_id"] for name in (MINE, OTHER)}


def token(api: Api, **wanted: Any) -> dict[str, Any]:
    made = api.post("/tokens", {"subject": "ann", "role": "operator", **wanted})
    assert made.status_code == 200, made.text
    found: dict[str, Any] = made.json()
    return found


@pytest.fixture
def limited(api: Api, node: RunningNode) -> Iterator[Api]:
    limited = Api(node, token(api, vms=[MINE])["secret"])
    yield limited
    limited.client.close()


def refused(answer: httpx.Response, status: int, reason: str) -> None:
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text


def test_a_limited_token_lists_and_finds_its_own_only(limited: Api, api: Api, backups: dict[str, str]) -> None:
    assert {backup["vm_name"] for backup in limited.get("/backup/list").json()["backups"]} == {MINE}
    assert {vm["vm_name"] for vm in limited.get("/vms").json()["vms"]} == {MINE}
    assert limited.get(f"/backup/{backups[MINE]}").status_code == 200
    assert limited.get("/backup/chain", vm_name=MINE).status_code == 200
    refused(limited.get(f"/backup/{backups[OTHER]}"), 404, "BACKUP_NOT_FOUND")
    refused(limited.get(f"/backup/{backups[OTHER]}/log"), 404, "BACKUP_NOT_FOUND")
    refused(limited.get(f"/backup/{backups[OTHER]}/watch"), 404, "BACKUP_NOT_FOUND")
    refused(limited.get("/backup/chain", vm_name=OTHER), 404, "VM_NOT_FOUND")
    # A beginning that others' ids share too names only one for this token.
    assert limited.get("/backup/backup-acc-").json()["backup_id"] == backups[MINE]
    assert api.get("/backup/backup-acc-").json()["reason"] == "AMBIGUOUS_BACKUP_ID"


def test_a_limited_token_changes_nothing_of_others(limited: Api, api: Api, backups: dict[str, str]) -> None:
    before = api.get("/backup/list", vm_name=OTHER).json()
    refused(limited.post("/backup/start", {"vm_name": OTHER, "backup_type": "full"}), 403, "OUTSIDE_TOKEN_LIMITS")
    uuids = {vm["vm_name"]: vm["vm_uuid"] for vm in api.get("/vms").json()["vms"]}
    outside = {"vm_uuid": uuids[OTHER], "backup_type": "full"}
    refused(limited.post("/backup/start", outside), 403, "OUTSIDE_TOKEN_LIMITS")
    refused(limited.delete(f"/backup/{backups[OTHER]}"), 404, "BACKUP_NOT_FOUND")
    refused(limited.post(f"/backup/{backups[OTHER]}/cancel", {}), 404, "BACKUP_NOT_FOUND")
    refused(limited.get("/exports"), 403, "TOKEN_LIMITED")
    assert api.get("/backup/list", vm_name=OTHER).json() == before


def test_a_limited_token_sees_mounts_and_content_of_its_own_only(
    api: Api, node: RunningNode, backups: dict[str, str]
) -> None:
    mine = Api(node, token(api, role="restore", vms=[MINE])["secret"])
    others = api.post("/restore/mount", {"backup_id": backups[OTHER]}).json()["mount_id"]
    refused(mine.post("/restore/mount", {"backup_id": backups[OTHER]}), 404, "BACKUP_NOT_FOUND")
    for path in (f"/restore/{others}", f"/restore/{others}/files"):
        refused(mine.get(path), 404, "MOUNT_NOT_FOUND")
    refused(mine.get(f"/restore/{others}/download", path="/etc/hostname"), 404, "MOUNT_NOT_FOUND")
    refused(mine.delete(f"/restore/{others}"), 404, "MOUNT_NOT_FOUND")
    own = mine.post("/restore/mount", {"backup_id": backups[MINE]}).json()["mount_id"]
    assert [mount["mount_id"] for mount in mine.get("/restore").json()["mounts"]] == [own]
    assert {own, others} <= {mount["mount_id"] for mount in api.get("/restore").json()["mounts"]}
    assert mine.get(f"/restore/{own}/files").status_code == 200
    for mount_id in (own, others):
        assert api.delete(f"/restore/{mount_id}").status_code == 200
    mine.client.close()


def test_a_limited_token_gets_whole_disks_of_its_own_only(api: Api, node: RunningNode, backups: dict[str, str]) -> None:
    mine = Api(node, token(api, role="restore", vms=[MINE])["secret"])
    for path, name, reason in (
        ("/restore/exports", "export_id", "DISK_EXPORT_NOT_FOUND"),
        ("/restore/served", "served_id", "SERVED_POINT_NOT_FOUND"),
    ):
        wish = {"format": "qcow2"} if name == "export_id" else {}
        refused(mine.post(path, {"backup_id": backups[OTHER], **wish}), 404, "BACKUP_NOT_FOUND")
        others = api.post(path, {"backup_id": backups[OTHER], **wish}).raise_for_status().json()[name]
        own = mine.post(path, {"backup_id": backups[MINE], **wish}).raise_for_status().json()[name]
        (listed,) = mine.get(path).json().values()
        assert [each[name] for each in listed] == [own]
        refused(mine.delete(f"{path}/{others}"), 404, reason)
        if name == "export_id":
            refused(mine.get(f"{path}/{others}"), 404, reason)
            refused(mine.get(f"/restore/{others}/download"), 404, reason)
            assert mine.get(f"{path}/{own}").status_code == 200
        assert mine.delete(f"{path}/{own}").status_code == 200
        assert api.delete(f"{path}/{others}").status_code == 200
    mine.client.close()


def test_a_token_may_be_limited_to_repositories(api: Api, node: RunningNode, backups: dict[str, str]) -> None:
    elsewhere = Api(node, token(api, repositories=["elsewhere"])["secret"])
    assert elsewhere.get("/repositories").json()["repositories"] == []
    assert elsewhere.get("/backup/list").json()["backups"] == []
    refused(elsewhere.get("/repositories/local"), 403, "OUTSIDE_TOKEN_LIMITS")
    refused(elsewhere.get(f"/backup/{backups[MINE]}"), 404, "BACKUP_NOT_FOUND")
    elsewhere.client.close()
    here = Api(node, token(api, repositories=["local"])["secret"])
    assert [each["name"] for each in here.get("/repositories").json()["repositories"]] == ["local"]
    assert here.get(f"/backup/{backups[MINE]}").status_code == 200
    here.client.close()


def test_a_repeated_request_is_done_once_and_gets_the_same_answer(api: Api, backups: dict[str, str]) -> None:
    for path, body in (
        ("/tokens", {"subject": "twice", "role": "viewer"}),
        ("/restore/mount", {"backup_id": backups[MINE]}),
    ):
        request_id = uuid.uuid4().hex
        answers = [api.post(path, {**body, "request_id": request_id}) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        if path == "/tokens":
            assert len({answer.text for answer in answers}) == 1
        else:
            assert len({answer.json()["mount_id"] for answer in answers}) == 1
        changed = {name: OTHER if name == "subject" else value for name, value in body.items()}
        if path == "/tokens":
            refused(api.post(path, {**changed, "request_id": request_id}), 400, "REQUEST_ID_REUSED")
    mount_id, once = answers[0].json()["mount_id"], uuid.uuid4().hex
    # Without the id the second would say that there is no such mount.
    assert [api.delete(f"/restore/{mount_id}", request_id=once).status_code for _ in range(3)] == [200] * 3
    refused(api.delete(f"/restore/{mount_id}"), 404, "MOUNT_NOT_FOUND")
    twice = api.get("/tokens", subject="twice").json()["tokens"]
    assert len(twice) == 1


def test_a_revoked_token_is_refused_by_every_service_within_a_minute(api: Api, node: RunningNode) -> None:
    made = token(api, role="admin")
    fired = Api(node, made["secret"])
    paths = ("/tokens", "/backup/list", "/exports", "/repositories", "/restore", "/vms")
    assert {fired.get(path).status_code for path in paths} == {200}
    started = time.monotonic()
    assert api.delete(f"/tokens/{made['token']['token_id']}").status_code == 200
    for path in paths:
        while (answer := fired.get(path)).status_code == 200:
            assert time.monotonic() - started < 60, path
        refused(answer, 401, "UNAUTHENTICATED")
    fired.client.close()


def test_who_did_what_is_recorded_and_the_record_is_whole(api: Api, node: RunningNode, limited: Api) -> None:
    limited.post("/backup/start", {"vm_name": OTHER, "backup_type": "full"})
    deadline = time.monotonic() + 60
    while True:
        about = {"actor": "ann", "result": "OUTSIDE_TOKEN_LIMITS", "target": f"vm_name={OTHER}"}
        entries = api.get("/audit", **about).json()["entries"]
        if entries:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert entries[0]["action"] == "BackupService.StartBackup"
    assert entries[0]["target"] == f"vm_name={OTHER}"
    assert entries[0]["source"]
    assert entries[0]["token_id"]
    assert "The audit log is whole" in node.run("sendense-ctl", "audit", "verify").replace("\n", " ")
    assert "BackupService.StartBackup" in node.run("sendense-ctl", "audit", "list", "--actor", "ann", "--json")


def test_explain_says_why(api: Api, node: RunningNode) -> None:
    made = token(api, role="viewer", vms=[MINE])
    file = node.home / "viewer.token"
    file.write_text(made["secret"])

    def explain(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [Path(sys.executable).parent / "sendense-ctl", "auth", "explain", *arguments, "--json"],
            env={**node.environment, "SENDENSE_TOKEN_FILE": str(file)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}

    assert explain("BackupService.ListBackups")[1]["allowed"] is True
    status, said = explain("POST /api/v1/backup/start")
    assert (status, said["reason"], said["role_needed"], said["role_held"]) == (4, "ROLE_MISSING", "operator", "viewer")
    assert explain("GET /api/v1/backup/x", "--vm", OTHER)[1]["reason"] == "OUTSIDE_TOKEN_LIMITS"
    assert explain("GET /api/v1/exports")[1]["reason"] == "TOKEN_LIMITED"
    api.delete(f"/tokens/{made['token']['token_id']}")
    status, said = explain("GET /api/v1/vms")
    assert status == 4
    assert "revoked" in said["stderr"]
