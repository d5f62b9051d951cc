"""A node over three machines (control plane, repository node, agent): backups and files back, over mutual TLS."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from backup_postgres import postgres_server

from machines import Machines, machines_of
from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from whole_node import kept_snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

HOSTS = {"control": "10.79.14.1", "storage": "10.79.14.2", "site": "10.79.14.3"}
SERVICES = {
    "control": "access backup gateway",
    "storage": "repository exports nbdd tunnel restore",
    "site": "lab agent",
}
VM = "far"
FILE = "/var/www/index.html"


class Machine(RunningNode):
    """`sendense-node up` on one of the machines."""

    def __init__(self, machines: Machines, name: str, **environment: str) -> None:
        others = {HOSTS[other]: SERVICES[other] for other in HOSTS if other not in (name, "site")}
        told = {"SENDENSE_NODE_SERVICES": SERVICES[name]}
        if name != "site":  # an agent knows the tunnel, from its enrolment, and nobody else
            told |= {"SENDENSE_NODE_ADDRESS": HOSTS[name], "SENDENSE_NODE_OTHERS": json.dumps(others)}
        super().__init__(machines.home(name), machines.inside(name), **told, **environment)

    def run(self, *command: str) -> str:
        try:
            return super().run(*command)
        except subprocess.CalledProcessError as error:
            logs = [f"{file.name}\n{file.read_text()[-3000:]}" for file in self.home.parent.glob("*/log/*.log")]
            pytest.fail("\n".join([str(command), error.stdout, error.stderr, *logs]))


@pytest.fixture(scope="module")
def three() -> Iterator[dict[str, Machine]]:
    with ExitStack() as stack:
        machines = stack.enter_context(machines_of(HOSTS))
        shared = stack.enter_context(postgres_server(HOSTS["control"], machines.inside("control"))).url
        control = Machine(machines, "control", SENDENSE_DATABASE_URL=shared)
        tunnel = f"{HOSTS['storage']}:443"
        storage = Machine(machines, "storage", SENDENSE_DATABASE_URL=shared, SENDENSE_TUNNEL_LISTEN=tunnel)
        site = Machine(machines, "site", SENDENSE_LAB_KEEP_SNAPSHOTS="1")
        stack.enter_context(control)
        given = machines.root / "given"
        control.run("sendense-node", "machine", HOSTS["storage"], "--out", str(given))
        shutil.copytree(given, storage.home)
        stack.enter_context(storage)
        joining = site.home / "agent" / "enrollment.json"
        joining.parent.mkdir(parents=True)
        control.run(
            *("sendense-ctl", "agent", "enroll", "--agent-id", "far-site"),
            *("--tunnel-address", tunnel, "--output", str(joining)),
        )
        stack.enter_context(site)
        yield {"control": control, "storage": storage, "site": site}


def back_up(control: Machine, kind: str) -> dict[str, Any]:
    said = control.run("sendense-ctl", "backup", "start", "--vm", VM, "--type", kind, "--wait", "--json")
    backup: dict[str, Any] = json.loads(said)
    assert backup["status"] == "completed", backup
    return backup


def test_a_backup_its_increment_and_a_file_over_three_machines(three: dict[str, Machine], tmp_path: Path) -> None:
    control, storage, site = three.values()
    lab = LabClient(site.home)
    lab.create_vm(VM, ["64M:ext4"], small_files=20)
    page = tmp_path / "page"
    page.write_bytes(b"first\n" * 10_000)
    lab.guest_put(VM, page, FILE)
    full = back_up(control, "full")
    page.write_bytes(b"second\n" * 10_000)
    lab.guest_put(VM, page, FILE)
    increment = back_up(control, "incremental")
    assert (full["backup_type"], increment["backup_type"]) == ("full", "incremental")

    raw, layer = tmp_path / "raw", Path(increment["disks"][0]["path"])
    assert layer.is_relative_to(storage.home)
    lab.export(VM, 0, raw, snapshot=kept_snapshot(lab, VM, increment["backup_id"]))
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, layer]
    compared = subprocess.run(compare, check=False, capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr

    # Mounted on the storage machine, read through the gateway of the control plane.
    for backup, content in ((full, b"first\n"), (increment, b"second\n")):
        got = tmp_path / backup["backup_id"]
        control.run(
            *("sendense-ctl", "backup", "extract", "--backup-id", backup["backup_id"]),
            *("--file", FILE, "--output", str(got)),
        )
        assert got.read_bytes() == content * 10_000

    # No disk passes the control plane, nobody else can sign, and the agent has no identity of a service.
    assert not list(control.home.glob("**/*.qcow2"))
    assert [name for name, each in three.items() if (each.home / "keys" / "signing.pem").exists()] == ["control"]
    assert not (site.home / "keys" / "identities").exists()
    # What was done on the storage machine is in the one audit log of the control plane.
    with_mounts = control.run("sendense-ctl", "audit", "list", "--json")
    assert "RestoreService.MountBackup" in with_mounts
