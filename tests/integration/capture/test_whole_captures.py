"""Backups through every real part: reader, engine, tunnel, exports, nbdd, repository, durable workflow, lab.

The hundreds of backups in `hundred_backups` fill stored layers without reader, tunnel, nbdd and workflow; these few
take the long way, with the same things happening to the VM, and with what only the long way can show.
`SENDENSE_WHOLE_CAPTURES` says how many there are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from capture_node import CaptureNode, capture_node, state_directory
from sendense_lab.client import LabClient
from vm_life import DISKS, ROUNDS, Round, VmLife

pytestmark = [pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

BACKUPS = int(os.environ.get("SENDENSE_WHOLE_CAPTURES", "4"))
MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[CaptureNode]:
    with state_directory() as home, LabClient.start(home, SENDENSE_LAB_KEEP_SNAPSHOTS="1") as lab:
        async with capture_node(home, lab, SENDENSE_BACKUP_SWEEP_SECONDS="0.5") as running:
            yield running


def drawn_rounds(count: int) -> list[Round]:
    """Returns rounds of a life, the same each time."""
    drawn: list[Round] = []

    @seed(11)
    @settings(max_examples=1, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.lists(ROUNDS, min_size=count, max_size=count))
    def draw(rounds: list[Round]) -> None:
        drawn.extend(rounds)

    draw()
    return drawn[:count]


async def test_whatever_happens_to_a_vm_each_backup_is_its_snapshot(node: CaptureNode) -> None:
    node.lab.create_vm("web", DISKS)
    life = VmLife(node.lab, "web")
    await node.back_up("web", "full")
    for drawn in drawn_rounds(BACKUPS):
        for action in drawn.before:
            await asyncio.to_thread(life.act, action)
        if node.lab.vm("web")["power_state"] != "poweredOn":
            node.lab.power_on("web")
        life.set_faults(drawn)
        # The guest writes by itself for the whole time of the backup.
        with node.lab.writing("web", seed=life.done.get("write", 0), length=4096):
            backup = await node.ended((await node.start("web", drawn.requested)).backup_id)
        life.clear_faults()
        if backup.status != "completed":
            locked = any(kind == "leftover" for kind, _, _ in drawn.before)
            assert (backup.error_reason, locked) == ("VCENTER_FAULT", True), backup.error_message
            continue
        node.assert_equal(node.lab, "web", backup)


async def test_a_disk_is_left_out_and_what_the_snapshot_is_is_told(node: CaptureNode) -> None:
    node.lab.create_vm("two", ["1M:blank", "1M:blank@1"])
    node.lab.set_fault("quiesce")
    backup = await node.back_up("two", "full", exclude_disks=["Hard disk 2"], quiesce=True)
    assert [(disk.status, disk.reason) for disk in backup.disks] == [
        ("completed", "first backup"),
        ("skipped", "excluded by the caller"),
    ]
    assert backup.consistency == "crash-consistent"
    assert "ApplicationQuiesceFault" in backup.consistency_note
    assert list(backup.exclude_disks) == ["Hard disk 2"]
    node.lab.clear_faults()
    with node.lab.fault("snapshot-remove", error="FileLocked"):
        stuck = await node.back_up("two", quiesce=True)
        assert "FileLocked" in stuck.alert
    assert (stuck.consistency, stuck.consistency_note) == ("quiesced", "")
    async with asyncio.timeout(240):
        while (await node.get(stuck.backup_id)).alert:  # noqa: ASYNC110  # the caretaker, in its process, goes on trying
            await asyncio.sleep(0.2)
    assert [each for each in node.lab.snapshots("two") if not each["kept"]] == []


async def test_fact_17_sessions_that_expire_in_the_middle_of_a_copy_cost_nothing(node: CaptureNode) -> None:
    node.lab.create_vm("big", ["48M:blank"])
    node.lab.guest_write("big", 0, 0, seed=1, length=48 * MIB)
    node.lab.set_fault("read-session-expired", after_bytes=8 * MIB, times=1)
    node.lab.set_fault("read-session-expired", after_bytes=24 * MIB, times=1)
    backup = await node.back_up("big", "full")
    assert all(each["spoiled"] for each in node.lab.clear_faults())
    node.assert_equal(node.lab, "big", backup)
