"""`sendense-ctl` as a person types it: the spec's commands, terminals of all kinds, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from support import free_port
from terminal import in_terminal
from whole_node import Api, fresh_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BIN = Path(sys.executable).parent
CTL = str(BIN / "sendense-ctl")
VM = "pgtest2"
INDEX = "<?php // the file that was lost\n"
HOSTILE = ["two words", 'it\'s "quoted"; $(id)', "größe ✓ 🚀", "--help", "line\nbreak\tand tab"]


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    """A node of its own: `pgtest2` must be one VM, and other tests make theirs."""
    with fresh_node() as running:
        yield running


@pytest.fixture(scope="module")
def lab(node: RunningNode) -> LabClient:
    return LabClient(node.home)


@pytest.fixture(scope="module")
def api(node: RunningNode) -> Iterator[Api]:
    api = Api(node)
    yield api
    api.client.close()


@pytest.fixture(scope="module")
def environment(node: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a person's shell has: the node's home, a home without settings, our programs."""
    kept = {
        name: os.environ[name] for name in ("COVERAGE_PROCESS_START", "COVERAGE_FILE", "LANG") if name in os.environ
    }
    return {
        **kept,
        "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(tmp_path_factory.mktemp("home")),
        "SENDENSE_HOME": str(node.home),
        "TERM": "xterm-256color",
        "PYTHONUTF8": "1",
    }


@pytest.fixture(scope="module")
def vm(lab: LabClient, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec's VM, with the spec's file in it, backed up fully with the spec's first command."""
    lab.create_vm(VM, ["96M:ext4"], small_files=20)
    index = tmp_path_factory.mktemp("content") / "index.php"
    index.write_text(INDEX)
    lab.guest_put(VM, index, "/var/www/index.php")
    shown = in_terminal(["sendense-ctl", "backup", "start", "--vm", "pgtest2", "--type", "full"], environment)
    assert shown.status == 0, shown.text
    assert "completed: full" in shown.text
    return VM


def run(environment: Mapping[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it without a terminal."""
    return subprocess.run(
        [CTL, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )


def answer(environment: Mapping[str, str], *arguments: str) -> Any:
    """Runs it with `--json` and returns the one document that it prints."""
    done = run(environment, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def backup_id(vm: str, environment: dict[str, str]) -> str:
    return str(answer(environment, "backup", "list", "--vm", vm)["backups"][0]["backup_id"])


def test_the_specs_commands_work_as_they_stand(
    vm: str, backup_id: str, environment: dict[str, str], tmp_path: Path
) -> None:
    # `backup start` is the fixture's. The spec's ids end with the day: a beginning of an id is enough.
    listed = run(environment, "backup", "list", "--vm", "pgtest2")
    assert (listed.returncode, backup_id in listed.stdout) == (0, True)
    place = tmp_path / "restore"
    mounted = run(environment, "backup", "mount", "--backup-id", backup_id, "--path", str(place))
    assert mounted.returncode == 0, mounted.stderr
    assert (place / "var/www/index.php").read_text() == INDEX
    command = ["backup", "extract", "--backup-id", backup_id, "--file", "/var/www/index.php"]
    extracted = run(environment, *command, "--output", "./index.php", cwd=tmp_path)
    assert extracted.returncode == 0, extracted.stderr
    assert (tmp_path / "index.php").read_text() == INDEX
    said = answer(environment, *command, "--output", str(tmp_path / "again.php"))
    assert said == {
        "backup_id": backup_id,
        "file": "/var/www/index.php",
        "output": str(tmp_path / "again.php"),
        "size_bytes": str(len(INDEX)),
    }
    assert (tmp_path / "again.php").read_text() == INDEX
    chain = run(environment, "backup", "chain", "--vm", "pgtest2")
    assert (chain.returncode, backup_id in chain.stdout) == (0, True)
    for mount in answer(environment, "backup", "mounts")["mounts"]:
        if mount["backup_id"] == backup_id:
            assert run(environment, "backup", "umount", "--mount-id", mount["mount_id"]).returncode == 0


def test_the_specs_commands_answer_json_as_rest_does(
    vm: str, backup_id: str, environment: dict[str, str], api: Any
) -> None:
    pairs = (
        (["backup", "list", "--vm", vm], api.get("/backup/list", vm_name=vm)),
        (["backup", "get", "--backup-id", backup_id], api.get(f"/backup/{backup_id}")),
        (["backup", "chain", "--vm", vm], api.get("/backup/chain", vm_name=vm)),
        (["repository", "list"], api.get("/repositories")),
        (["agent", "list"], api.get("/agents")),
    )
    for command, rest in pairs:
        said = answer(environment, *command)
        if command[0] == "repository":  # its free room changes from one call to the next
            assert said["repositories"][0].keys() == rest.json()["repositories"][0].keys()
            continue
        assert said == rest.json(), command


COMMANDS: tuple[Callable[[str], list[str]], ...] = (
    lambda _: ["backup", "list"],
    lambda backup: ["backup", "get", "--backup-id", backup],
    lambda _: ["backup", "chain", "--vm", VM],
    lambda backup: ["backup", "log", "--backup-id", backup],
    lambda _: ["backup", "mounts"],
    lambda _: ["vm", "list"],
    lambda _: ["repository", "list"],
    lambda _: ["agent", "list"],
    lambda _: ["doctor"],
    lambda _: ["config", "explain"],
    lambda _: ["--help"],
    lambda _: ["backup", "start", "--help"],
)


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_output_fits_the_terminal_and_ids_stay_in_one_piece(
    number: int, backup_id: str, environment: dict[str, str]
) -> None:
    command = COMMANDS[number](backup_id)
    wide = in_terminal([CTL, *command], environment, columns=80)
    assert wide.status in (0, 1), wide.text  # the doctor may find fault with this machine
    narrow = in_terminal([CTL, *command], environment, columns=40)
    assert narrow.status == wide.status
    assert "Traceback" not in wide.text + narrow.text
    too_long = [line for line in narrow.text.splitlines() if len(line) > 40 and max(map(len, line.split())) <= 30]
    assert too_long == [], "only what must stay in one piece, such as a path or a key, may be longer"
    for shown in (wide, narrow):
        if command[:2] in (["backup", "list"], ["backup", "chain"], ["backup", "get"]):
            assert backup_id in shown.text


@pytest.mark.parametrize("how", ["no terminal", "dumb"])
def test_no_escape_sequence_reaches_what_cannot_show_it(how: str, backup_id: str, environment: dict[str, str]) -> None:
    for command in (["backup", "list"], ["backup", "chain", "--vm", VM], ["backup", "get", "--backup-id", "nothing"]):
        if how == "dumb":
            output = in_terminal([CTL, *command], {**environment, "TERM": "dumb"}).raw
        else:
            done = run(environment, *command)
            output = done.stdout + done.stderr
        assert output
        assert "\x1b" not in output


def test_a_reader_that_leaves_ends_it_quietly(backup_id: str, environment: dict[str, str]) -> None:
    for command in ("backup list --json", "backup list", f"backup get --backup-id {backup_id}"):
        script = f"set -o pipefail; {CTL} {command} | true"
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr


def test_ctrl_c_leaves_the_backup_running_and_says_how_to_join_it(
    vm: str, environment: dict[str, str], lab: LabClient
) -> None:
    with lab.fault("read-slow", ms=20):
        shown = in_terminal(
            [CTL, "backup", "start", "--vm", vm, "--type", "full"], environment, interrupt_after="queued"
        )
        assert shown.status == 130, shown.text
        assert "The backup goes on: sendense-ctl backup watch --backup-id" in " ".join(shown.text.split())
        assert "Traceback" not in shown.text
    newest = answer(environment, "backup", "list", "--vm", vm)["backups"][0]["backup_id"]
    joined = in_terminal([CTL, "backup", "watch", "--backup-id", newest], environment, columns=40)
    assert joined.status == 0, joined.text
    assert "completed" in joined.text


def test_ctrl_c_anywhere_ends_it_quietly(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [CTL, "backup", "list"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # The interpreter itself may still be starting: then it is the signal that ends it.
    assert process.returncode in (0, 1, 130, -signal.SIGINT)
    if process.returncode == 130:
        assert "Traceback" not in errors


def test_a_gateway_that_is_down_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("not.a.token")
    endpoint = f"https://127.0.0.1:{free_port()}"
    options = ["--endpoint", endpoint, "--token-file", str(token)]
    done = run(environment, *options, "backup", "list")
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""  # nor that it was tried again: that may be the middle of a command's JSON
    doctor = run(environment, *options, "doctor")
    assert doctor.returncode == 1
    assert f"{endpoint}:" in doctor.stdout


def test_a_wrong_certificate_is_a_hard_stop(environment: dict[str, str], node: RunningNode, tmp_path: Path) -> None:
    key, other = tmp_path / "key.pem", tmp_path / "other.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=other",
            "-keyout",
            key,
            "-out",
            other,
        ],
        check=True,
        capture_output=True,
    )
    done = run(environment, "--ca", str(other), "backup", "list")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    found = json.loads(run(environment, "--ca", str(other), "doctor", "--json").stdout)["findings"]
    gateway = next(finding for finding in found if finding["subject"] == "gateway")
    assert gateway["level"] == "error"
    assert "do not send your token" in gateway["risk"]


def test_a_bad_token_is_refused_with_its_own_exit_code(environment: dict[str, str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("not.a.token")
    done = run(environment, "--token-file", str(token), "backup", "list")
    assert done.returncode == 4
    assert "[UNAUTHENTICATED]" in done.stderr


def test_the_token_of_the_node_goes_to_no_other_gateway(environment: dict[str, str]) -> None:
    done = run(environment, "--endpoint", f"https://127.0.0.1:{free_port()}", "backup", "list")
    assert done.returncode == 1
    assert "no token is known" in done.stderr


@pytest.mark.parametrize("name", HOSTILE)
def test_any_vm_name_is_shown_harmlessly_and_backed_up(name: str, environment: dict[str, str], lab: LabClient) -> None:
    lab.create_vm(name, ["4M:blank"])
    try:
        shown = in_terminal([CTL, "vm", "list"], {**environment, "NO_COLOR": "1"})
        assert shown.status == 0
        assert "\t" not in shown.raw
        assert "line\r\n" not in shown.raw
        done = run(environment, "backup", "start", f"--vm={name}", "--type", "full", "--json")
        if any(ord(character) < 32 for character in name):
            assert done.returncode == 7, done.stdout + done.stderr  # refused at the edge, by the spec's pattern
            assert "\t" not in done.stderr
            return
        assert done.returncode == 0, done.stderr
        backup = json.loads(done.stdout)
        assert backup["vm_name"] == name
        listed = answer(environment, "backup", "list", f"--vm={name}")["backups"]
        assert [each["backup_id"] for each in listed] == [backup["backup_id"]]
        assert run(environment, "backup", "chain", f"--vm={name}").returncode == 0
    finally:
        lab.delete_vm(name)


def completed(environment: Mapping[str, str], line: str) -> list[str]:
    """Returns what bash would offer on TAB at the end of a line."""
    words = line.split(" ")
    done = subprocess.run(
        [CTL],
        env={
            **environment,
            "_SENDENSE_CTL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.endswith("\n") else done.stdout.split("\n")


def test_tab_offers_what_the_server_knows(vm: str, backup_id: str, environment: dict[str, str]) -> None:
    assert "backup" in completed(environment, "sendense-ctl ba")
    assert "chain" in completed(environment, "sendense-ctl backup ch")
    assert completed(environment, f"sendense-ctl backup chain --vm {vm[:3]}") == [vm]
    assert backup_id in completed(environment, "sendense-ctl backup get --backup-id backup-")
    mounted = answer(environment, "backup", "mount", "--backup-id", backup_id)
    try:
        line = f"sendense-ctl backup files --mount-id {mounted['mount_id']} --path /var/w"
        assert completed(environment, line) == ["/var/www/"]
    finally:
        run(environment, "backup", "umount", "--mount-id", mounted["mount_id"])


def test_tab_says_nothing_when_nobody_answers(environment: dict[str, str], tmp_path: Path) -> None:
    away = {**environment, "SENDENSE_ENDPOINT": "https://127.0.0.1:1", "SENDENSE_TOKEN_FILE": str(tmp_path)}
    assert completed(away, "sendense-ctl backup chain --vm ") in ([], [""])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_each_shell(shell: str, environment: dict[str, str]) -> None:
    done = run({**environment, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}, "--show-completion", shell)
    assert "_SENDENSE_CTL_COMPLETE" in done.stdout


def test_help_needs_no_server_and_imports_no_grpc(environment: dict[str, str]) -> None:
    code = "import sys, sendense_ctl.main; sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0
