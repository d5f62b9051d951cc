"""Several vCenters, several agents, accounts that are wrong, and VMs of one name (cbt-facts 18)."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from capture_node import CaptureNode, capture_node, second_agent, write_vcenters
from sendense_agent.agent import Agent
from sendense_agent.model import VmRef
from sendense_agent.vcenter import VCenters
from sendense_lab.client import LabClient
from sendense_rpc.errors import RemoteError, SendenseError

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LabClient, LabClient]]:
    """Two vCenters, each with a VM `twin`; only the first has `web`, only the second `db`."""
    homes = [Path(f"/tmp/labs-{tmp_path_factory.getbasetemp().name}-{n}") for n in "ab"]  # short: a socket is in it
    for home in homes:
        home.mkdir(mode=0o700)
    try:
        with (
            LabClient.start(homes[0], SENDENSE_LAB_KEEP_SNAPSHOTS="1") as first,
            LabClient.start(homes[1], SENDENSE_LAB_KEEP_SNAPSHOTS="1") as second,
        ):
            for lab, name in ((first, "web"), (second, "db")):
                lab.create_vm(name, ["1M:blank"])
                lab.create_vm("twin", ["1M:blank"])
                lab.guest_write(name, 0, 65536, seed=1, length=65536)
            yield first, second
    finally:
        for home in homes:
            shutil.rmtree(home)


@asynccontextmanager
async def agent_of(file: Path, *accounts: dict[str, Any]) -> AsyncIterator[Agent]:
    write_vcenters(file, *accounts)
    vcenters = VCenters(file)
    try:
        yield Agent(vcenters, None, None)  # type: ignore[arg-type]  # it captures nothing here
    finally:
        await vcenters.close()


async def test_fact_18_one_agent_serves_the_vms_of_several_vcenters(
    labs: tuple[LabClient, LabClient], tmp_path: Path
) -> None:
    first, second = labs
    async with agent_of(
        tmp_path / "v.json", first.credentials() | {"name": "a"}, second.credentials() | {"name": "b"}
    ) as agent:
        listed = await agent.list_vms("")
        assert [vm.name for vm in listed] == ["db", "twin", "twin", "web"]
        assert len({vm.vcenter_uuid for vm in listed}) == 2
        for vm in listed:
            assert (await agent.inspect_vm(VmRef(vm.vcenter_uuid, vm.vm_uuid))).name == vm.name


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"password": "wrong"}, "VCENTER_LOGIN_REFUSED"),
        ({"certificate": None, "sha256": "00" * 32}, "VCENTER_CERTIFICATE_CHANGED"),
        ({"port": 1}, "VCENTER_UNAVAILABLE"),
    ],
)
async def test_a_wrong_account_is_named_and_stops_no_other_vcenter(
    labs: tuple[LabClient, LabClient], tmp_path: Path, wrong: dict[str, Any], reason: str
) -> None:
    first, second = labs
    broken = first.credentials() | {"name": "a"} | wrong
    async with agent_of(tmp_path / "v.json", broken) as agent:
        with pytest.raises(SendenseError) as refused:
            await agent.list_vms("")
        assert refused.value.reason == reason
        assert "'a'" in refused.value.message
        assert refused.value.help
    async with agent_of(tmp_path / "v.json", broken, second.credentials() | {"name": "b"}) as agent:
        (db,) = await agent.list_vms("db")
        assert await agent.list_vms("web") == []
        inspected = await agent.inspect_vm(VmRef(db.vcenter_uuid, db.vm_uuid))
        assert inspected.name == "db"


async def test_fact_18_an_ambiguous_name_lists_the_candidates_and_the_agent_that_knows_a_vm_backs_it_up(
    labs: tuple[LabClient, LabClient], sendense_home: Path
) -> None:
    first, second = labs
    async with capture_node(sendense_home, first) as node, second_agent(node, second):
        with pytest.raises(RemoteError) as refused:
            await node.start("twin", "full")
        assert refused.value.reason == "AMBIGUOUS_VM_NAME"
        uuids = [lab.vm("twin")["instance_uuid"] for lab in labs]
        assert all(uuid in refused.value.message for uuid in uuids)
        for lab in labs:
            assert lab.snapshots("twin") == []
        backup = await node.ended((await node.start("", "full", vm_uuid=uuids[1])).backup_id)
        assert backup.status == "completed", backup.error_message
        assert [each["name"] for each in second.snapshots("twin")] != []
        assert first.snapshots("twin") == []
        await _equal(node, second, "db")
        with pytest.raises(RemoteError) as unknown:
            await node.start("nobody", "full")
        assert unknown.value.reason == "VM_NOT_FOUND"


async def _equal(node: CaptureNode, lab: LabClient, vm: str) -> None:
    backup = await node.back_up(vm, "full")
    node.assert_equal(lab, vm, backup)
