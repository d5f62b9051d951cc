"""A hundred backups of VMs to which anything happens: after each, every disk's layer is the snapshot, byte for byte.

Several test files call this, so that they run side by side; each draws other lives. `SENDENSE_CAPTURE_LIVES` multiplies
the number of lives.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rehearsal import rehearsal
from sendense_backup.model import COMPLETED, INCREMENTAL
from sendense_lab.client import LabClient
from vm_life import DISKS, ROUNDS, Round, VmLife

LIVES = 10
ROUNDS_OF_A_LIFE = 11
"""One more than a hundred backups need: some fail, because what they drew lets them."""


def run_hundred_backups(home: Path, number: int) -> Counter[str]:
    """Runs them and returns what happened: kinds of actions, reasons of disks, `backups`.

    Args:
        home: A state directory with keys, to which `SENDENSE_HOME` points.
        number: Which hundred.
    """
    happened: Counter[str] = Counter()
    lives = LIVES * int(os.environ.get("SENDENSE_CAPTURE_LIVES", "1"))

    # Same lives each time: what a test draws must not depend on the day.
    @seed(number)
    @settings(
        max_examples=lives,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking would take an hour; the failed life is printed
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(ROUNDS, min_size=ROUNDS_OF_A_LIFE, max_size=ROUNDS_OF_A_LIFE))
    def one_life(rounds: list[Round]) -> None:
        happened.update(runner.run(_live(home, lab, rounds)))

    with LabClient.start(home) as lab, asyncio.Runner() as runner:
        one_life()
    return happened


async def _live(home: Path, lab: LabClient, rounds: list[Round]) -> Counter[str]:
    happened: Counter[str] = Counter()
    vm = f"web-{uuid.uuid4().hex[:8]}"
    lab.create_vm(vm, DISKS)
    (home / "db" / "sendense.sqlite").unlink(missing_ok=True)
    try:
        async with rehearsal(home, lab) as node:
            ref = await node.ref(vm)
            life = VmLife(lab, vm)
            for drawn in rounds:
                for action in drawn.before:
                    await asyncio.to_thread(life.act, action)
                locked = any(kind == "leftover" for kind, _, _ in drawn.before)
                life.set_faults(drawn)
                job = await node.back_up(
                    vm, ref, drawn.requested, frozen=lambda _, drawn=drawn: [life.act(each) for each in drawn.during]
                )
                life.clear_faults()
                if job.status != COMPLETED:
                    # The snapshot of the stun cycle that makes change tracking effective could not be removed.
                    assert (job.error_reason, locked) == ("VCENTER_FAULT", True), job.error_message
                    happened["failed"] += 1
                    continue
                happened["backups"] += 1
                happened.update(INCREMENTAL if disk.backup_type == INCREMENTAL else disk.reason for disk in job.disks)
            happened.update(life.done)
    finally:
        lab.clear_faults()
        lab.delete_vm(vm)
    return happened
