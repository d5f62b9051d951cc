"""Bad input: one clear error, the same over REST, gRPC and CLI, and nothing changed by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from sendense.backup.v1 import backup_pb2, backup_pb2_grpc
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from sendense_rpc.status import from_rpc_error

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TWIN = "twin"
LONELY = "lonely"
BACKED_UP = "backed-up"


@pytest.fixture(scope="module", autouse=True)
def vms(lab: LabClient) -> None:
    for folder in ("", "other"):
        lab.create_vm(TWIN, ["64M:ext4"], small_files=10, folder=folder)
    for name in (LONELY, BACKED_UP):
        lab.create_vm(name, ["64M:ext4"], small_files=10)


CASES = {
    "unknown VM": ({"vm_name": "nobody", "backup_type": "full"}, 404, "VM_NOT_FOUND"),
    "ambiguous name": ({"vm_name": TWIN, "backup_type": "full"}, 400, "AMBIGUOUS_VM_NAME"),
    "increment without full": ({"vm_name": LONELY, "backup_type": "incremental"}, 400, "NO_FULL_BACKUP"),
    "unknown repository": (
        {"vm_name": LONELY, "backup_type": "full", "repository": "attic"},
        404,
        "REPOSITORY_NOT_FOUND",
    ),
    "unknown type": ({"vm_name": LONELY, "backup_type": "differential"}, 400, "INVALID_FIELD"),
    "no name": ({"backup_type": "full"}, 400, None),
    "control characters": ({"vm_name": "a\nb", "backup_type": "full"}, 400, "INVALID_FIELD"),
    "looks like an option": ({"vm_name": "--help;$(id)", "backup_type": "full"}, 404, "VM_NOT_FOUND"),
}


@pytest.mark.parametrize("case", CASES)
def test_rest_and_grpc_refuse_a_start_alike(case: str, api: Any, node: RunningNode) -> None:
    body, status, reason = CASES[case]
    before = api.get("/backup/list").json()
    answer = api.post("/backup/start", body)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told["message"]
    if reason:
        assert told["reason"] == reason
    with _channel(node) as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.StartBackup(backup_pb2.StartBackupRequest(**body), metadata=_metadata(node), timeout=20)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.message) == (told["reason"], told["message"])
    assert api.get("/backup/list").json() == before


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["backup", "start", "--vm", "nobody", "--type", "full"], 3, "VM_NOT_FOUND"),
        (["backup", "start", "--vm", TWIN, "--type", "full"], 7, "AMBIGUOUS_VM_NAME"),
        (["backup", "start", "--vm", LONELY, "--type", "incremental"], 5, "NO_FULL_BACKUP"),
        (["backup", "start", "--vm", LONELY, "--type", "full", "--repository", "attic"], 3, "REPOSITORY_NOT_FOUND"),
        (["backup", "chain", "--vm", "nobody"], 3, "VM_NOT_FOUND"),
        (["backup", "mount", "--backup-id", "backup-none"], 3, "BACKUP_NOT_FOUND"),
    ],
)
def test_the_cli_says_the_same_with_its_own_exit_code(
    node: RunningNode, arguments: list[str], status: int, reason: str
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        node.run("sendense-ctl", *arguments)
    assert caught.value.returncode == status, caught.value.stderr
    assert reason in caught.value.stderr
    assert "Traceback" not in caught.value.stderr


def test_an_ambiguous_name_lists_the_candidates(api: Any) -> None:
    told = api.post("/backup/start", {"vm_name": TWIN, "backup_type": "full"}).json()
    uuids = {vm["vm_uuid"] for vm in api.get("/vms").json()["vms"] if vm["vm_name"] == TWIN}
    assert len(uuids) == 2
    assert all(uuid in json.dumps(told) for uuid in uuids)


@pytest.mark.parametrize("body", ["{", "[]", '{"vm_name": 3}', '{"vm_name": "x", "backup_type": "full"', "\x00"])
def test_malformed_json_is_refused(api: Any, body: str) -> None:
    answer = api.client.post("/api/v1/backup/start", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["reason"]
    assert answer.json()["message"]


@pytest.mark.parametrize("token", ["garbage", "a.b.c"])
def test_a_wrong_token_is_refused_everywhere(api: Any, node: RunningNode, token: str) -> None:
    answer = api.client.get("/api/v1/backup/list", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert answer.json()["reason"] == "UNAUTHENTICATED"
    assert answer.json()["help"]
    with _channel(node) as channel:
        stub = backup_pb2_grpc.BackupServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListBackups(backup_pb2.ListBackupsRequest(), metadata=metadata, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    token_file = node.home / "wrong.token"
    token_file.write_text(token)
    done = subprocess.run(
        [Path(sys.executable).parent / "sendense-ctl", "backup", "list"],
        env={**node.environment, "SENDENSE_TOKEN_FILE": str(token_file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr


def test_no_token_at_all_is_refused(api: Any) -> None:
    answer = api.client.get("/api/v1/backup/list", headers={"Authorization": ""})
    assert answer.status_code == 401
    assert answer.json()["reason"] == "UNAUTHENTICATED"


def test_a_viewer_may_look_but_not_start(api: Any) -> None:
    made = api.post("/tokens", {"subject": "eve", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert api.client.get("/api/v1/backup/list", headers=headers).status_code == 200
    body = {"vm_name": LONELY, "backup_type": "full"}
    answer = api.client.post("/api/v1/backup/start", json=body, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["reason"] == "ROLE_MISSING"


def test_a_path_outside_the_mount_is_refused(api: Any) -> None:
    backup = api.back_up(BACKED_UP, "full")
    mount_id = api.post("/restore/mount", {"backup_id": backup["backup_id"]}).json()["mount_id"]
    for path in ("/../../etc/passwd", "/..", "/var/../../../root"):
        for what in ("files", "download"):
            answer = api.get(f"/restore/{mount_id}/{what}", path=path)
            assert answer.status_code == 400, (path, what, answer.text)
            assert answer.json()["reason"] == "PATH_OUTSIDE_MOUNT"
    missing = api.get(f"/restore/{mount_id}/download", path="/no/such/file")
    assert missing.status_code == 404
    assert missing.json()["reason"] == "FILE_NOT_FOUND"
    assert api.delete(f"/restore/{mount_id}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/backup/nothing-like-it", "/restore/mount-none", "/exports/none", "/repositories/none"]
)
def test_what_is_not_there_is_404_with_a_reason(api: Any, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 404
    assert answer.json()["reason"].endswith("_NOT_FOUND")


def _channel(node: RunningNode) -> grpc.Channel:
    endpoint = (node.home / "endpoint").read_text().strip().removeprefix("https://")
    roots = (node.home / "tls" / "ca.crt").read_bytes()
    return grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(roots))


def _metadata(node: RunningNode) -> tuple[tuple[str, str], ...]:
    return (("authorization", "Bearer " + (node.home / "admin.token").read_text().strip()),)
