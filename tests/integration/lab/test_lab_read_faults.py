"""The datastore's folder misbehaves on demand: refusals, cut and short answers, lost sessions, slow reads."""

from __future__ import annotations

import http.client
import itertools
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab_rig import Vcenter

from sendense_lab.client import LabClient

names = (f"read-{number}" for number in itertools.count())
MIB = 1024**2
Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def name(lab: LabClient, vcenter: Vcenter) -> Iterator[str]:
    """A VM with content and a snapshot."""
    name = str(lab.create_vm(next(names), ["1M:blank"])["name"])
    lab.guest_write(name, 0, 0, seed=1, length=MIB)
    lab.create_snapshot(name, "frozen")
    yield name
    lab.clear_faults()


@pytest.fixture
def ask(lab: LabClient, vcenter: Vcenter, name: str) -> Iterator[Ask]:
    """Asks for a range of the disk on one connection that is made again when it was cut."""
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)

    def ask(start: int | None = None, length: int = 0, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        headers = {"Cookie": vcenter.cookie}
        if start is not None:
            headers["Range"] = f"bytes={start}-{start + length - 1}"
        path = f"/folder/{name}/{name}-flat.vmdk?dcPath=lab&dsName=labstore"
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        except (http.client.HTTPException, OSError):
            connection.close()
            raise

    yield ask
    connection.close()


@pytest.fixture
def content(ask: Ask) -> bytes:
    return ask()[2]


def test_an_error_hits_the_request_that_wants_a_byte(lab: LabClient, ask: Ask, name: str, content: bytes) -> None:
    lab.set_fault("read-error", vm=name, offset=500_000, status=503)
    assert ask(0, 500_000)[2] == content[:500_000]
    assert ask(499_999, 2)[0] == 503
    assert ask(499_999, 2)[2] == content[499_999:500_001]


def test_an_error_comes_after_so_many_bytes_of_the_disk(lab: LabClient, ask: Ask, name: str, content: bytes) -> None:
    lab.set_fault("read-error", vm=name, disk=0, after_bytes=300_000)
    for start in (0, 100_000, 200_000):
        assert ask(start, 100_000)[0] == 206
    assert ask(300_000, 100_000)[0] == 500
    assert ask(300_000, 100_000)[2] == content[300_000:400_000]


def test_a_cut_answer_is_seen_as_broken(lab: LabClient, ask: Ask, content: bytes) -> None:
    lab.set_fault("read-cut", sent=1000)
    with pytest.raises((http.client.IncompleteRead, OSError)) as broken:
        ask(5000, 100_000)
    if isinstance(broken.value, http.client.IncompleteRead):
        assert content[5000:6000].startswith(broken.value.partial)
    assert ask(5000, 100_000)[2] == content[5000:105_000]


def test_a_short_answer_is_complete_http(lab: LabClient, ask: Ask, content: bytes) -> None:
    lab.set_fault("read-short", missing=512)
    status, headers, body = ask(5000, 100_000)
    assert status == 206
    assert body == content[5000 : 105_000 - 512]
    assert headers["content-range"] == f"bytes 5000-{105_000 - 513}/{MIB}"
    assert len(ask(5000, 100_000)[2]) == 100_000


def test_a_session_can_be_lost_in_the_middle_of_a_disk(
    lab: LabClient, vcenter: Vcenter, ask: Ask, content: bytes
) -> None:
    assert content
    lab.set_fault("read-session-expired", after_bytes=200_000)
    statuses = [ask(start, 100_000)[0] for start in range(0, 500_000, 100_000)]
    assert statuses == [206, 206, 401, 401, 401]
    account = vcenter.account
    vcenter.content.sessionManager.Login(account["username"], account["password"], None)
    assert ask(400_000, 100_000)[2] == content[400_000:500_000]


def test_reads_can_be_slow(lab: LabClient, ask: Ask, content: bytes) -> None:
    for parameters, least in (({"ms": 150}, 0.15), ({"bytes_per_second": 500_000}, 0.2)):
        with lab.fault("read-slow", **parameters):
            started = time.monotonic()
            assert ask(0, 100_000)[2] == content[:100_000]
            assert time.monotonic() - started >= least


def test_a_folder_without_ranges_answers_with_the_whole_file(lab: LabClient, ask: Ask, content: bytes) -> None:
    with lab.fault("read-no-range"):
        status, headers, body = ask(5000, 1000)
        assert (status, body == content) == (200, True)
        assert "accept-ranges" not in headers
        assert "accept-ranges" not in ask(method="HEAD")[1]
    assert ask(method="HEAD")[1]["accept-ranges"] == "bytes"


def test_a_host_may_refuse_a_running_vms_extent(lab: LabClient, ask: Ask, name: str) -> None:
    with lab.fault("read-refused", vm=name, status=403):
        assert ask(0, 10)[0] == 403
        assert ask(method="HEAD")[0] == 403
        lab.power_off(name)
        assert ask(0, 10)[0] == 206
        lab.power_on(name)
        assert ask(0, 10)[0] == 403
    assert ask(0, 10)[0] == 206


def test_a_mapping_and_an_independent_disk_cannot_be_read_while_the_vm_runs(
    lab: LabClient, vcenter: Vcenter, name: str
) -> None:
    odd = str(lab.create_vm(next(names), ["1M:blank,rdm", "1M:blank,independent"])["name"])
    lab.create_snapshot(odd, "s")
    account = lab.credentials()
    context = ssl.create_default_context(cafile=account["certificate"])
    connection = http.client.HTTPSConnection(account["host"], account["port"], context=context)

    def status(file: str) -> Any:
        path = f"/folder/{odd}/{file}?dcPath=lab&dsName=labstore"
        connection.request("HEAD", path, headers={"Cookie": vcenter.cookie})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert status(f"{odd}-rdmp.vmdk") == 500
    assert status(f"{odd}_1-flat.vmdk") == 500
    lab.power_off(odd)
    assert status(f"{odd}-rdmp.vmdk") == 500
    assert status(f"{odd}_1-flat.vmdk") == 200
    connection.close()
