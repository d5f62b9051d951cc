"""Any of the services down: the others answer, the gateway says which is missing, and it recovers in any order."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sendense_lab.client import LabClient
from sendense_node.config import NodeSettings
from sendense_node.lab import introduce
from sendense_node.processes import environment_for
from sendense_node.ready import wait_until_ready
from sendense_node.running import RunningNode
from sendense_node.state import prepare
from whole_node import Api

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SECONDS = 90.0
ANSWERED_BY = {
    "access": "/tokens",
    "backup": "/backup/list",
    "exports": "/exports",
    "repository": "/repositories",
    "restore": "/restore",
}
"""For each service a path that it answers by itself."""


class Apart:
    """The processes of a node, each started and stopped alone."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._environment = {**os.environ, **environment_for(home, Path(sys.executable).parent, introduce(home))}
        lines = (ROOT / "deploy" / "Procfile").read_text().splitlines()
        split = (line.split(": ", 1) for line in lines if line)
        self._commands = {name: shlex.split(command) for name, command in split}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._commands)

    def start(self, name: str) -> None:
        program, *arguments = self._commands[name]
        with (self.home / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [Path(sys.executable).parent / program, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str, number: signal.Signals) -> None:
        process = self._running.pop(name)
        process.send_signal(number)
        process.wait(60)

    def stop_all(self) -> None:
        for process in self._running.values():
            process.terminate()
        stuck = []
        for name, process in self._running.items():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                stuck.append(name)
                process.kill()
                process.wait()
        assert not stuck, f"{stuck} did not end at SIGTERM"


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    home = Path(tempfile.mkdtemp(prefix="sd-", dir="/var/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENDENSE_HOME", str(home))
        prepare(NodeSettings())
    apart = Apart(home)
    try:
        names = apart.names
        random.shuffle(names)
        for name in names:
            apart.start(name)
        yield apart
    finally:
        apart.stop_all()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def settings(apart: Apart) -> NodeSettings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENDENSE_HOME", str(apart.home))
        return NodeSettings()


@pytest.fixture(scope="module")
def api(apart: Apart, settings: NodeSettings) -> Iterator[Api]:
    asyncio.run(wait_until_ready(settings))
    api = Api(RunningNode(apart.home))
    yield api
    api.client.close()


def until(api: Api, missing: list[str]) -> None:
    """Waits until /readyz says that exactly these services are missing."""
    deadline = time.monotonic() + SECONDS
    while True:
        answer = api.client.get("/readyz")
        found = answer.json()
        if found["missing"] == missing:
            assert answer.status_code == (503 if missing else 200)
            assert found["ready"] is not bool(missing)
            return
        if time.monotonic() > deadline:
            pytest.fail(f"wanted {missing}, found {found}")
        time.sleep(0.1)


@pytest.mark.parametrize("name", [*ANSWERED_BY, "tunnel"])
def test_one_that_is_down_is_named_and_the_others_answer(apart: Apart, api: Api, name: str) -> None:
    until(api, [])
    apart.stop(name, signal.SIGKILL)
    until(api, [name])
    for owner, path in ANSWERED_BY.items():
        answer = api.get(path)
        if owner == name:
            assert (answer.status_code, answer.json()["reason"]) == (503, "SERVICE_UNAVAILABLE")
            assert f"'{name}'" in answer.json()["message"]
            assert answer.json()["help"]
        else:
            assert answer.status_code == 200, (owner, answer.text)
    assert api.client.get("/healthz").status_code == 200
    apart.start(name)
    until(api, [])


def test_everything_comes_back_in_any_order_and_works(apart: Apart, api: Api) -> None:
    names = [name for name in apart.names if name not in ("lab", "gateway")]
    random.shuffle(names)
    for name in names:
        apart.stop(name, signal.SIGTERM)
    until(api, sorted([*ANSWERED_BY, "tunnel"]))
    random.shuffle(names)
    print("order of starts:", names)  # noqa: T201  # repeats a failure
    for name in names:
        apart.start(name)
    until(api, [])
    LabClient(apart.home).create_vm("pgtest2", ["64M:ext4"], small_files=5)
    deadline = time.monotonic() + SECONDS
    while not [vm for vm in _vms(api) if vm["vm_name"] == "pgtest2"]:  # the agent has connected again
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert api.back_up("pgtest2", "full")["status"] == "completed"


def _vms(api: Api) -> list[dict[str, object]]:
    answer = api.get("/vms")
    return list(answer.json()["vms"]) if answer.status_code == 200 else []


def test_the_gateway_itself_comes_back_on_its_port_while_requests_end(apart: Apart, api: Api) -> None:
    until(api, [])
    before = (apart.home / "endpoint").read_text()
    apart.stop("gateway", signal.SIGTERM)
    with pytest.raises(httpx.TransportError):
        api.client.get("/healthz")
    apart.start("gateway")
    deadline = time.monotonic() + SECONDS
    while not (apart.home / "endpoint").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (apart.home / "endpoint").read_text() == before
    until(api, [])
