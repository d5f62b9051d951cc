"""The server keeps its state over restarts and crashes, cleans up after itself, and says when it is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import Result
from lab_rig import Vcenter, blocks, differing_blocks, disks, leftovers
from typer.testing import CliRunner

from sendense_lab.client import LabClient
from sendense_lab.errors import LabError, ServerNotRunningError
from sendense_lab.main import app


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sendense_lab.main", *arguments],
        env=os.environ | {"SENDENSE_HOME": str(home)},
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_without_a_server_commands_say_what_to_do(short_tmp: Path) -> None:
    with pytest.raises(ServerNotRunningError):
        LabClient(short_tmp).vms()
    failed = command(short_tmp, "vm", "list")
    assert failed.returncode == 1
    assert b"make up" in failed.stderr
    failed = command(short_tmp, "vm", "list", "--json")
    assert json.loads(failed.stderr)["error"]["reason"] == "LAB_NOT_RUNNING"


def test_state_port_and_password_survive_a_restart(short_tmp: Path) -> None:
    with LabClient.start(short_tmp) as lab:
        moref = lab.create_vm("web", ["16M:ext4"], small_files=5)["moref"]
        lab.set_page_areas(3)
        first = Vcenter(lab)
        first.enable_tracking(first.vm(moref))
        snapshot = first.snapshot(first.vm(moref), "open")
        change_id = disks(snapshot.config)[0].backing.changeId
        account, instance = lab.credentials(), first.content.about.instanceUuid
        lab.guest_write(moref, 0, 8 * 1024**2, seed=1, length=100)
        lab.export(moref, 0, short_tmp / "before")
        first.close()
        lab.stop()
        with pytest.raises(ServerNotRunningError):
            lab.info()
        lab.restart()
        assert lab.credentials() == account
        assert lab.info()["page_areas"] == 3
        lab.export(moref, 0, short_tmp / "after")
        assert (short_tmp / "before").read_bytes() == (short_tmp / "after").read_bytes()
        again = Vcenter(lab)
        assert again.content.about.instanceUuid == instance
        vm = again.vm(moref)
        assert disks(vm.snapshot.currentSnapshot.config)[0].backing.changeId == change_id
        again.remove(vm.snapshot.currentSnapshot)
        again.close()
    assert leftovers(short_tmp) == []


def test_a_second_server_in_the_same_home_is_refused(lab: LabClient, home: Path) -> None:
    refused = command(home, "serve")
    assert refused.returncode == 1
    assert b"Another server" in refused.stderr
    assert lab.info()["url"]


def test_labs_in_other_homes_do_not_disturb_each_other(lab: LabClient, short_tmp: Path) -> None:
    with LabClient.start(short_tmp) as other:
        assert other.credentials()["port"] != lab.credentials()["port"]
        assert other.credentials()["password"] != lab.credentials()["password"]
        other.create_vm("mine", ["16M:ext4"], small_files=5)
        assert "mine" not in [vm["name"] for vm in lab.vms()]


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.45])
def test_a_killed_server_leaves_nothing_and_loses_no_truth(short_tmp: Path, delay: float) -> None:
    lab = LabClient.start(short_tmp)
    try:
        moref = lab.create_vm("web", ["64M:ext4"], small_files=20)["moref"]
        client = Vcenter(lab)
        client.enable_tracking(client.vm(moref))
        snapshot = client.snapshot(client.vm(moref), "base")
        change_id = disks(snapshot.config)[0].backing.changeId
        lab.export(moref, 0, short_tmp / "base")
        client.close()

        def work() -> None:
            with pytest.raises(ServerNotRunningError):
                busy()

        def busy() -> None:
            for seed in range(100):
                lab.guest_run(moref, share=0.5, seed=seed)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(delay)
        lab.kill()
        thread.join()
        lab.restart()
        assert leftovers(short_tmp) == []
        lab.export(moref, 0, short_tmp / "now")
        named = lab.changed(moref, 0, change_id)
        differing = differing_blocks(short_tmp / "base", short_tmp / "now")
        assert differing <= blocks([(area["offset"], area["length"]) for area in named["areas"]])
        lab.export(moref, 0, short_tmp / "frozen", snapshot="base")
        assert (short_tmp / "frozen").read_bytes() == (short_tmp / "base").read_bytes()
        lab.guest_run(moref, share=0.1)
    finally:
        lab.stop()
    assert leftovers(short_tmp) == []
    assert list((short_tmp / "lab" / "run").iterdir()) == []


def test_a_stop_during_creation_leaves_no_mount_and_no_vm(short_tmp: Path) -> None:
    with LabClient.start(short_tmp) as lab:

        def work() -> None:
            with pytest.raises(LabError):
                lab.create_vm("big", ["1G:ext4"], small_files=500)

        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 20
        while not leftovers(short_tmp):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lab.stop()
        thread.join()
        assert leftovers(short_tmp) == []
        lab.restart()
        assert lab.vms() == []
        assert list((short_tmp / "lab" / "datastore").iterdir()) == []


def test_the_command_line_does_what_it_says(
    lab: LabClient, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_HOME", str(home))
    runner = CliRunner()

    def command(*arguments: str) -> Result:
        return runner.invoke(app, arguments)

    made = command("vm", "create", "cli", "--disk", "16M:ext4", "--seed", "4", "--small-files", "5", "--json")
    moref = json.loads(made.stdout)["moref"]
    (tmp_path / "in").write_bytes(b"hello \xff\n")
    assert command("guest", "put", "cli", str(tmp_path / "in"), "/etc/in").exit_code == 0
    assert command("guest", "cat", "cli", "/etc/in").stdout_bytes == b"hello \xff\n"
    assert command("guest", "write", "cli", "--offset", "9000000", "--length", "10").exit_code == 0
    assert json.loads(command("guest", "run", "cli", "--share", "0.1", "--json").stdout)["bytes_changed"] > 0
    assert command("disk", "export", "cli", str(tmp_path / "raw")).exit_code == 0
    assert (tmp_path / "raw").stat().st_size == 16 * 1024**2
    client = Vcenter(lab)
    client.enable_tracking(client.vm(moref))
    snapshot = client.snapshot(client.vm(moref), "shown")
    listed = json.loads(command("vm", "snapshots", "cli", "--json").stdout)["snapshots"][-1]
    assert (listed["moref"], listed["name"], listed["kept"]) == (snapshot._GetMoId(), "shown", False)
    changed = command("disk", "changed", moref, "--since", listed["disks"][0]["change_id"], "--json")
    assert json.loads(changed.stdout)["bytes"] == 0
    client.remove(snapshot)
    client.close()
    for human in (["vm", "list"], ["vm", "snapshots", "cli"], ["info"], ["guest", "rm", "cli", "/etc/in"]):
        assert command(*human).exit_code == 0
    assert command("vm", "delete", "cli").exit_code == 0
    assert command("vm", "snapshots", "cli").exit_code == 1
