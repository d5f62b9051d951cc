"""A change tracking that lies, on the real parts: found, nothing wrong stored, doubtful points marked, then a full."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from capture_node import CaptureNode, capture_node, state_directory
from sendense.repository.v1 import point_pb2, point_pb2_grpc
from sendense_lab.client import LabClient
from sendense_rpc.channel import unix_peer
from sendense_rpc.settings import ServiceSettings

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

BLOCK = 64 << 10
VM = "web"


@pytest.fixture(scope="module")
def vcenter() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


@pytest.fixture
def lab(vcenter: LabClient) -> Iterator[LabClient]:
    """The lab with a VM that was never backed up."""
    vcenter.create_vm(VM, ["16M:blank"])
    yield vcenter
    vcenter.clear_faults()
    vcenter.delete_vm(VM)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(vcenter: LabClient) -> AsyncIterator[CaptureNode]:
    """A node that compares all that it does not copy."""
    with state_directory() as home:
        async with capture_node(home, vcenter, SENDENSE_BACKUP_AUDIT_SHARE="1") as running:
            yield running


def write(lab: LabClient, block: int, seed: int) -> None:
    lab.guest_write(VM, 0, block * BLOCK, seed=seed, length=BLOCK)


async def suspicion(backup_id: str) -> str:
    """Returns what the repository doubts about a restore point."""
    settings = ServiceSettings()
    peer = unix_peer(settings.socket("repository"), settings.identity_file("backup"))
    try:
        stub = point_pb2_grpc.PointServiceStub(peer.channel)
        point = await peer.call(stub.GetPoint, point_pb2.GetPointRequest(backup_id=backup_id))
    finally:
        await peer.close()
    assert {layer.suspicion for layer in point.layers} == {point.integrity.suspicion}
    return str(point.integrity.suspicion)


async def lied_to(node: CaptureNode, block: int, seed: int) -> str:
    """Changes a block that change tracking hides, backs up, and returns why that failed; empty if it did not."""
    write(node.lab, block, seed)
    with node.lab.fault("cbt-lie", blocks=0):
        backup = await node.ended((await node.start(VM)).backup_id)
    return f"{backup.error_reason} {backup.error_message}" if backup.status == "failed" else ""


async def same_as_snapshot(node: CaptureNode, backup_id: str, raw: Path) -> None:
    """Fails unless the newest layer of a backup equals the VM's disk, whose guest rests."""
    await asyncio.to_thread(node.lab.export, VM, 0, raw)
    (disk,) = (await node.get(backup_id)).disks
    compared = await asyncio.create_subprocess_exec(
        "qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", disk.path, str(raw)
    )
    assert await compared.wait() == 0


async def test_fact_08_a_lie_is_always_caught_at_a_share_of_one(
    lab: LabClient, strict: CaptureNode, short_tmp: Path
) -> None:
    write(lab, 5, 1)
    write(lab, 40, 2)
    node = strict
    full = await node.back_up(VM, "full")
    write(lab, 5, 3)
    second = await node.back_up(VM)
    write(lab, 9, 4)
    third = await node.back_up(VM)

    why = await lied_to(node, 5, 5)
    assert why.startswith("CHANGE_TRACKING_WRONG"), why
    assert "1 blocks of Hard disk 1" in why
    assert str(5 * BLOCK) in why
    assert await suspicion(full.backup_id) == "", "the block was written after it"
    assert str(5 * BLOCK) in await suspicion(second.backup_id)
    assert str(5 * BLOCK) in await suspicion(third.backup_id)
    assert lab.snapshots(VM) == []

    fourth = await node.back_up(VM)
    assert [(disk.backup_type, disk.reason) for disk in fourth.disks] == [("full", "change tracking wrong")]
    await same_as_snapshot(node, fourth.backup_id, short_tmp / "now.raw")
    assert await suspicion(fourth.backup_id) == ""

    write(lab, 9, 6)
    fifth = await node.back_up(VM)
    assert [disk.backup_type for disk in fifth.disks] == ["incremental"]
    why = await lied_to(node, 40, 7)
    assert why.startswith("CHANGE_TRACKING_WRONG"), why
    for each in (fourth, fifth):
        assert str(40 * BLOCK) in await suspicion(each.backup_id), "back to the full, which last wrote the block"


async def test_of_a_full_what_is_said_to_be_unallocated_is_compared_too(lab: LabClient, strict: CaptureNode) -> None:
    write(lab, 7, 1)
    await strict.back_up(VM, "full")  # turns tracking on: the next full asks what is allocated
    with lab.fault("cbt-lie", blocks=1):
        backup = await strict.ended((await strict.start(VM, "full")).backup_id)
    assert backup.error_reason == "CHANGE_TRACKING_WRONG"
    assert "no restore point is older" in backup.error_message


async def test_fact_08_the_rotating_slice_alone_finds_a_lie_within_its_turns(
    lab: LabClient, sendense_home: Path
) -> None:
    settings = {"SENDENSE_BACKUP_AUDIT_BLOCKS": "0", "SENDENSE_BACKUP_AUDIT_RUNS": "4"}
    write(lab, 250, 1)
    async with capture_node(sendense_home, lab, **settings) as node:
        await node.back_up(VM, "full")
        write(lab, 1, 2)
        hidden = await lied_to(node, 250, 3)
        turns = 1
        while not hidden:
            write(lab, 1, turns + 10)
            backup = await node.ended((await node.start(VM)).backup_id)
            hidden = backup.error_reason
            turns += 1
            assert turns <= 4
        assert hidden.startswith("CHANGE_TRACKING_WRONG")


async def test_switched_off_nothing_is_compared(lab: LabClient, sendense_home: Path) -> None:
    off = {"SENDENSE_BACKUP_AUDIT_BLOCKS": "0", "SENDENSE_BACKUP_AUDIT_RUNS": "0"}
    async with capture_node(sendense_home, lab, **off) as node:
        await node.back_up(VM, "full")
        assert await lied_to(node, 3, 1) == ""
