"""Reverts that hide behind a foreign snapshot, and what the event log can and cannot prove (cbt-facts 10a).

Each life has the trap in it: a foreign snapshot, a backup, a revert that brings old blocks back. The rehearsal compares
each layer with its snapshot, so an increment that trusted the query would fail the test by itself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rehearsal import Rehearsal, rehearsal
from sendense_backup.decisions import FullReason
from sendense_backup.model import Job, VmRef
from sendense_lab.client import LabClient

BLOCK = 64 * 1024
VM = "web"
REVERTED, POSSIBLE = FullReason.REVERTED.value, FullReason.REVERT_POSSIBLE.value


class Life:
    """A VM with one disk."""

    def __init__(self, node: Rehearsal, ref: VmRef) -> None:
        self.node = node
        self.lab = node.lab
        self.ref = ref
        self._seed = 0

    def write(self, block: int) -> None:
        self._seed += 1
        self.lab.guest_write(VM, 0, block * BLOCK, seed=self._seed, length=BLOCK)

    async def back_up(self) -> Job:
        job: Job = await self.node.back_up(VM, self.ref)
        assert job.status == "completed", job.error_message
        return job

    async def why(self) -> str:
        (disk,) = (await self.back_up()).disks
        return "increment" if disk.backup_type == "incremental" else disk.reason

    async def trap(self) -> None:
        """A full, a foreign snapshot, an increment that has what the revert will undo."""
        await self.back_up()
        self.lab.create_snapshot(VM, "foreign")
        self.write(5)
        await self.back_up()

    def revert(self, name: str = "foreign", *, hide: bool = True) -> None:
        self.lab.revert_snapshot(VM, name, power_on=True)
        if hide:
            self.lab.remove_snapshot(VM, name)
        self.write(9)


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


@pytest.fixture
async def life(lab: LabClient, memory_home: Path) -> AsyncIterator[Life]:
    lab.create_vm(VM, ["1M:blank"])
    async with rehearsal(memory_home, lab) as node:
        yield Life(node, await node.ref(VM))
    lab.clear_faults()
    lab.delete_vm(VM)


@pytest.mark.parametrize("hide", [True, False])
async def test_fact_10a_a_revert_in_the_log_makes_a_full(life: Life, *, hide: bool) -> None:
    await life.trap()
    life.revert(hide=hide)
    assert await life.why() == REVERTED
    # The full is the new parent; what happened before it does not matter any more.
    life.write(3)
    assert await life.why() == "increment"


async def test_fact_10a_a_revert_that_the_log_forgot_is_not_ruled_out(life: Life) -> None:
    await life.trap()
    life.revert()
    life.lab.forget_events()
    assert await life.why() == POSSIBLE


async def test_fact_10a_a_log_that_was_cut_between_parent_and_revert_proves_nothing(life: Life) -> None:
    await life.trap()
    life.lab.forget_events()
    life.lab.set_vm(VM, tools="notRunning")  # the log goes on, with other things
    assert await life.why() == POSSIBLE


@pytest.mark.parametrize("method", ["CreateCollectorForEvents", "ReadNextEvents"])
async def test_fact_10a_a_log_that_cannot_be_read_proves_nothing(life: Life, method: str) -> None:
    await life.trap()
    life.revert()
    with life.lab.fault("api-error", method=method, error="NoPermission", times=None):
        assert await life.why() == POSSIBLE
    log = [line for line in await life.node.log_of_last() if line.step == "decide" and line.level == "warning"]
    assert [line for line in log if "event log could not be read" in line.message], log


async def test_fact_10a_a_log_that_could_not_be_read_at_the_parents_time_has_no_mark_to_reach(life: Life) -> None:
    await life.back_up()
    life.lab.create_snapshot(VM, "foreign")
    life.write(5)
    with life.lab.fault("api-error", method="CreateCollectorForEvents", error="NoPermission", times=None):
        await life.back_up()
    life.revert()
    assert await life.why() == POSSIBLE


async def test_fact_10a_a_vm_that_was_registered_again_has_a_new_log(life: Life) -> None:
    await life.trap()
    life.revert()
    life.lab.register_again(VM)
    assert await life.why() == POSSIBLE


async def test_fact_10a_users_who_keep_a_snapshot_for_weeks_get_increments(life: Life) -> None:
    await life.trap()
    for block in (1, 2):
        life.write(block)
        assert await life.why() == "increment"


async def test_fact_10a_without_any_other_snapshot_no_log_is_needed(life: Life) -> None:
    await life.back_up()
    with life.lab.fault("api-error", method="CreateCollectorForEvents", error="NoPermission", times=None):
        life.write(4)
        assert await life.why() == "increment"
        life.lab.create_snapshot(VM, "later")  # than the parent
        life.write(5)
        life.revert("later")
        assert await life.why() == "increment"  # it holds what the revert brought back: it is newer than the parent
    assert await life.why() == "increment"
    life.lab.create_snapshot(VM, "later")
    life.write(6)
    life.revert("later")
    assert await life.why() == REVERTED  # a revert that the log shows is never built upon


async def test_fact_10a_our_own_leftover_is_a_snapshot_to_go_back_to(life: Life) -> None:
    """Our snapshot could not be removed; somebody reverts to it two backups later."""
    await life.back_up()
    life.write(1)
    with life.lab.fault("snapshot-remove", vm=None):
        await life.back_up()
    (left,) = [each for each in life.lab.snapshots(VM) if not each["kept"]]
    with life.lab.fault("snapshot-remove", vm=None):
        life.write(2)
        await life.back_up()
    life.revert(left["moref"], hide=False)
    life.lab.forget_events()
    assert await life.why() == POSSIBLE
    assert [each for each in life.lab.snapshots(VM) if not each["kept"]] == []


async def test_fact_10a_a_revert_while_our_snapshot_is_open_changes_nothing_in_it(life: Life) -> None:
    await life.trap()
    life.write(6)

    def reverted(moref: str) -> None:
        del moref
        life.revert()

    job = await life.node.back_up(VM, life.ref, frozen=reverted)
    assert job.status == "completed", job.error_message
    assert await life.why() == REVERTED


async def test_fact_10a_a_snapshot_that_the_vm_does_not_stand_on_is_not_alone(life: Life) -> None:
    """Joined after a crash of ours: in between, somebody reverted and removed the snapshot that shows it."""
    await life.back_up()
    life.lab.create_snapshot(VM, "foreign")
    life.write(5)
    holder = life.node.holder("backup-crashed")
    made = await life.node.agent.create_snapshot(life.ref, holder, quiesce=False)
    assert not made.facts.alone
    life.revert()
    joined = await life.node.agent.create_snapshot(life.ref, holder, quiesce=False)
    assert joined.moref == made.moref
    assert not joined.facts.alone
    assert joined.facts.event_mark == made.facts.event_mark
    await life.node.agent.remove_snapshot(life.ref, holder, made.moref)
