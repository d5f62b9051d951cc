"""An agent on another machine, as an administrator adds and removes it: one command, one file, one process."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sendense_node.running import RunningNode
from whole_node import Api

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

BIN = Path(sys.executable).parent


def ctl(node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SENDENSE_HOME": str(node.home)}
    command = [str(BIN / "sendense-ctl"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_agent_joins_from_the_file_that_one_command_makes(node: RunningNode, api: Api, short_tmp: Path) -> None:
    file = short_tmp / "dc2.json"
    made = ctl(node, "agent", "enroll", "--agent-id", "dc2", "--output", str(file))
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code = json.loads(file.read_text())["code"]
    assert code not in made.stdout
    home = short_tmp / "far"
    (home / "agent").mkdir(parents=True)
    file.rename(home / "agent" / "enrollment.json")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")}
    door = node.home / "run" / "agents" / "dc2.sock"
    agent = subprocess.Popen(
        [str(BIN / "sendense-agent")],
        env={**environment, "SENDENSE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: door.exists() or agent.poll() is not None)
        assert agent.poll() is None
        assert "dc2" in [each["agent_id"] for each in api.get("/agents").json()["agents"]]
        again = api.post("/agents/enrollments", {"agent_id": "dc2", "tunnel_address": "127.0.0.1"})
        assert (again.status_code, again.json()["reason"]) == (409, "AGENT_EXISTS")
        removed = ctl(node, "agent", "remove", "dc2")
        assert removed.returncode == 0, removed.stderr
        until(lambda: not door.exists())
    finally:
        agent.terminate()
        agent.wait(timeout=60)
    for path in node.home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 16 << 20:
            assert code.encode() not in path.read_bytes(), path


def test_an_enrollment_without_a_sound_address_is_refused(api: Api) -> None:
    for body, status in (
        ({"agent_id": "dc3"}, 400),
        ({"agent_id": "../x", "tunnel_address": "node"}, 400),
        ({"agent_id": "dc3", "tunnel_address": "node:99999"}, 400),
        ({"agent_id": "dc3", "tunnel_address": "node", "lifetime_seconds": 10**6}, 400),
    ):
        answer = api.post("/agents/enrollments", body)
        assert answer.status_code == status, (body, answer.text)
        assert answer.json()["reason"] == "INVALID_FIELD"
