"""A hundred backups of VMs to which anything happens: after each, every disk's stored image is the snapshot's.

Several test files call this, so that they run side by side; each draws other lives. `SENDENSE_CAPTURE_LIVES` multiplies
the number of lives.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rehearsal import Rehearsal, rehearsal
from sendense_backup.model import COMPLETED, INCREMENTAL
from sendense_lab.client import LabClient
from stored_layers import qemu_layers
from vm_life import DISKS, EVENT_LOGS, IN_TURN, KINDS, ROUNDS, Action, Round, VmLife

LIVES = 10
ROUNDS_OF_A_LIFE = 11
"""One more than a hundred backups need: some fail, because what they drew lets them."""


class Lives:
    """Lives one VM after the other.

    Attributes:
        happened: Kinds of actions, reasons of disks, and what `assert_a_hundred` looks at.
    """

    def __init__(self, node: Rehearsal) -> None:
        self.happened: Counter[str] = Counter()
        self._node = node
        self._lab = node.lab
        self._turn = itertools.cycle(IN_TURN)

    async def live(self, rounds: list[Round]) -> None:
        """Makes a VM, lets rounds happen to it, and deletes it."""
        vm = f"web-{uuid.uuid4().hex[:8]}"
        await asyncio.to_thread(self._lab.create_vm, vm, DISKS)
        life = VmLife(self._lab, vm)
        try:
            for number, drawn in enumerate(rounds):
                in_turn = next(self._turn) if number % 2 else ()
                await self._round(life, drawn, (*((kind, *drawn.numbers) for kind in in_turn), *drawn.before))
        finally:
            self._lab.clear_faults()
            self._lab.delete_vm(vm)
        self.happened.update(life.done)
        self.happened["queries"] += sum(
            each["method"] == "QueryChangedDiskAreas" for each in self._lab.calls(reset=True)
        )

    async def _round(self, life: VmLife, drawn: Round, before: tuple[Action, ...]) -> None:
        happened = self.happened
        for action in before:
            await asyncio.to_thread(life.act, action)
        life.set_faults(drawn)
        job = await self._node.back_up(
            life.vm,
            await self._node.ref(life.vm),
            drawn.requested,
            frozen=lambda _: [life.act(each) for each in drawn.during],
        )
        life.clear_faults()
        if job.status != COMPLETED:
            # The snapshot of the stun cycle that makes change tracking effective could not be removed.
            locked = any(kind == "leftover" for kind, _, _ in before)
            assert (job.error_reason, locked) == ("VCENTER_FAULT", True), job.error_message
            happened["failed"] += 1
            return
        happened["backups"] += 1
        happened["disks"] += len(job.disks)
        happened.update(INCREMENTAL if disk.backup_type == INCREMENTAL else disk.reason for disk in job.disks)
        happened[f"event log {drawn.event_log}"] += 1
        happened[f"pages of {drawn.page_areas}"] += 1


def run_hundred_backups(number: int, home: Path, disks: Path) -> Counter[str]:
    """Runs them and returns what happened.

    Args:
        number: Which hundred.
        home: A state directory with keys, to which `SENDENSE_HOME` points; its catalogue grows to a few MiB.
        disks: Folder for lab and repository, with a short path.
    """

    # Same lives each time: what a test draws must not depend on the day.
    @seed(number)
    @settings(
        max_examples=LIVES * int(os.environ.get("SENDENSE_CAPTURE_LIVES", "1")),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking would take an hour; the failed life is printed
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(ROUNDS, min_size=ROUNDS_OF_A_LIFE, max_size=ROUNDS_OF_A_LIFE))
    def one_life(rounds: list[Round]) -> None:
        runner.run(lives.live(rounds))

    with LabClient.start(disks) as lab, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            lives = Lives(runner.run(_open(stack, home, disks, lab)))
            one_life()
        finally:
            runner.run(stack.aclose())
    return lives.happened


def assert_a_hundred(happened: Counter[str]) -> None:
    """Fails unless there were a hundred backups, with all that can happen and pages of 1 to 2,000 areas."""
    assert happened["backups"] >= 100
    assert happened["incremental"] > 100
    assert [kind for kind in KINDS if not happened[kind]] == []
    assert [kind for kind in EVENT_LOGS if not happened[f"event log {kind}"]] == []
    pages = sorted(int(key.removeprefix("pages of ")) for key in happened if key.startswith("pages of "))
    assert (pages[0], pages[-1]) == (1, 2000)
    assert len(pages) > 20
    # A query a disk, and further pages of those answers that had several.
    assert happened["queries"] > happened["disks"] + 50


async def _open(stack: AsyncExitStack, home: Path, disks: Path, lab: LabClient) -> Rehearsal:
    """Opens what the lives share."""
    return await stack.enter_async_context(
        rehearsal(home, lab, await stack.enter_async_context(qemu_layers(disks / "backups")))
    )
