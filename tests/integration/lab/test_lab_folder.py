"""The datastore's HTTPS folder serves the frozen base, by ranges, to those who logged in."""

from __future__ import annotations

import base64
import http.client
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_rig import Vcenter

from sendense_lab.client import LabClient

PATH = "/folder/folder/folder-flat.vmdk?dcPath=lab&dsName=labstore"
SIZE = 32 * 1024**2


@pytest.fixture(scope="module")
def moref(lab: LabClient) -> str:
    return str(lab.create_vm("folder", ["32M:ext4"], small_files=20)["moref"])


@pytest.fixture
def frozen(vcenter: Vcenter, moref: str) -> Iterator[Any]:
    snapshot = vcenter.snapshot(vcenter.vm(moref), "frozen")
    yield snapshot
    vcenter.remove(snapshot)


def ask(lab: LabClient, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.usefixtures("frozen")
def test_ranges_equal_the_exported_disk(
    lab: LabClient, vcenter: Vcenter, moref: str, exported: Callable[..., Path]
) -> None:
    content = exported(moref, 0, "frozen").read_bytes()
    assert len(content) == SIZE
    for start, end in (
        (0, 0),
        (0, 511),
        (1024 * 1024, 4 * 1024 * 1024 + 17),
        (SIZE - 1, SIZE - 1),
        (SIZE - 10, SIZE + 5),
    ):
        status, headers, body = ask(lab, "GET", PATH, Cookie=vcenter.cookie, Range=f"bytes={start}-{end}")
        assert status == 206
        assert body == content[start : end + 1]
        assert headers["content-range"] == f"bytes {start}-{min(end, SIZE - 1)}/{SIZE}"
    status, headers, body = ask(lab, "GET", PATH, Cookie=vcenter.cookie)
    assert (status, body == content, headers["content-length"]) == (200, True, str(SIZE))


@pytest.mark.usefixtures("frozen")
def test_head_tells_the_size_and_that_ranges_work(lab: LabClient, vcenter: Vcenter) -> None:
    status, headers, body = ask(lab, "HEAD", PATH, Cookie=vcenter.cookie)
    assert (status, body) == (200, b"")
    assert headers["content-length"] == str(SIZE)
    assert headers["accept-ranges"] == "bytes"


@pytest.mark.usefixtures("frozen")
def test_a_login_is_needed(lab: LabClient, vcenter: Vcenter) -> None:
    assert ask(lab, "GET", PATH)[0] == 401
    assert ask(lab, "GET", PATH, Cookie='vmware_soap_session="00ff"')[0] == 401
    account = lab.credentials()
    for password, expected in ((account["password"], 200), ("wrong", 401)):
        token = base64.b64encode(f"{account['username']}:{password}".encode()).decode()
        assert ask(lab, "HEAD", PATH, Authorization=f"Basic {token}")[0] == expected
    cookie = vcenter.cookie
    lab.lose_sessions()
    assert ask(lab, "HEAD", PATH, Cookie=cookie)[0] == 401
    vcenter.content.sessionManager.Login(account["username"], account["password"], None)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PATH.replace("dsName=labstore", "dsName=other"), 404),
        (PATH.replace("dcPath=lab", "dcPath=x"), 404),
        (PATH.replace("folder-flat", "nothing-flat"), 404),
        ("/folder/folder/..%2f..%2flab.json?dcPath=lab&dsName=labstore", 404),
        ("/folder/../credentials.json?dcPath=lab&dsName=labstore", 404),
        (PATH.replace("folder-flat", "folder-000001-delta"), 500),
    ],
)
def test_other_files_are_refused(lab: LabClient, vcenter: Vcenter, path: str, expected: int) -> None:
    if expected == 500:
        listed = vcenter.vm(lab.vms()[0]["moref"]).layoutEx.file
        delta = next(found.name for found in listed if "delta" in found.name).rpartition("/")[2]
        path = path.replace("folder-000001-delta.vmdk", delta)
    assert ask(lab, "GET", path, Cookie=vcenter.cookie)[0] == expected


@pytest.mark.usefixtures("frozen")
def test_a_range_behind_the_end_is_416_and_the_connection_goes_on(lab: LabClient, vcenter: Vcenter) -> None:
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)
    try:
        for range_, expected in ((f"bytes={SIZE}-", 416), ("bytes=0-9", 206)):
            connection.request("GET", PATH, headers={"Cookie": vcenter.cookie, "Range": range_})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == expected
    finally:
        connection.close()


def test_a_running_vm_without_snapshot_is_locked(lab: LabClient, vcenter: Vcenter, moref: str) -> None:
    assert moref
    status, _, body = ask(lab, "GET", PATH, Cookie=vcenter.cookie)
    assert status == 500
    assert b"locked" in body


@pytest.mark.usefixtures("frozen")
def test_nbdkits_curl_plugin_copies_the_snapshot_while_the_guest_writes(
    lab: LabClient, vcenter: Vcenter, moref: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    account = lab.credentials()
    expected = exported(moref, 0, "frozen").read_bytes()
    copy, cookie = tmp_path / "copy.raw", tmp_path / "cookie"
    cookie.write_text(vcenter.cookie)
    argv = [
        *("nbdkit", "--exit-with-parent", "-r", "-U", "-", "--filter=rate", "curl", "rate=200M"),
        f"url=https://{account['host']}:{account['port']}{PATH}",
        f"cainfo={account['certificate']}",
        f"cookie=+{cookie}",
        *("--run", f"nbdcopy $uri {copy}"),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as reader:
        writes = 0
        while reader.poll() is None:
            lab.guest_run(moref, share=0.2, seed=writes)
            writes += 1
        output = reader.communicate(timeout=60)[0]
    assert reader.returncode == 0, output
    assert writes >= 2
    assert copy.read_bytes() == expected
    assert exported(moref, 0).read_bytes() != expected
