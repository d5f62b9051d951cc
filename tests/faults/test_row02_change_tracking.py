"""Row 2: tracking is reset or of another epoch, a disk is resized, added, removed, reordered, the VM is reverted.

Each makes a full of the disk that it is about, with a reason, and of no other; never a wrong increment (the rehearsal
compares each layer with its snapshot). The hundreds in tests/integration/capture do the same in every order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rehearsal import rehearsal
from sendense_backup.decisions import FullReason
from sendense_lab.client import LabClient

pytestmark = pytest.mark.timeout(300)

VM = "web"
DISKS = ["1M:blank", "1M:blank", "1M:blank@1"]
INCREMENT = "increment"


def revert(lab: LabClient) -> None:
    lab.revert_snapshot(VM, "old", power_on=True)
    lab.remove_snapshot(VM, "old")


CASES: dict[str, tuple[Callable[[LabClient], object], dict[str, int]]] = {
    "nothing": (lambda _: None, {INCREMENT: 3}),
    "one disk is reset": (
        lambda lab: lab.reset_tracking(VM, 1),
        {INCREMENT: 2, FullReason.CHANGE_TRACKING_RESET.value: 1},
    ),
    "all disks are reset": (lambda lab: lab.reset_tracking(VM), {FullReason.CHANGE_TRACKING_RESET.value: 3}),
    "a disk grew": (lambda lab: lab.resize_disk(VM, 2, "2M"), {INCREMENT: 2, FullReason.CAPACITY_CHANGED.value: 1}),
    "a disk grew and was reset": (
        lambda lab: lab.resize_disk(VM, 2, "3M", tracking="reset"),
        {INCREMENT: 2, FullReason.CAPACITY_CHANGED.value: 1},
    ),
    "a disk was added": (
        lambda lab: lab.add_disk(VM, "1M:blank@1"),
        {INCREMENT: 3, FullReason.DISK_ADDED.value: 1},
    ),
    "a disk was removed": (lambda lab: lab.remove_disk(VM, 0), {INCREMENT: 3}),
    "a disk was recreated": (
        lambda lab: lab.recreate_disk(VM, 0),
        {INCREMENT: 2, FullReason.DISK_ADDED.value: 1},
    ),
    "disks changed places": (lambda lab: lab.move_disk(VM, 0, position=2), {INCREMENT: 3}),
    "tracking was off for a while": (
        lambda lab: (
            lab.set_vm(VM, change_tracking=False),
            lab.create_snapshot(VM, "x"),
            lab.remove_snapshot(VM, "x"),
        ),
        {FullReason.CHANGE_TRACKING_RESET.value: 3},
    ),
    "the query faults": (
        lambda lab: lab.set_fault("cbt-error", query="changed", times=3),
        {FullReason.AREAS_QUERY_FAILED.value: 3},
    ),
    "an old snapshot": (lambda lab: lab.create_snapshot(VM, "old"), {INCREMENT: 3}),
    "the VM was reverted to it": (revert, {FullReason.REVERTED.value: 3}),
}
"""What happens before a backup, in this order, and how its disks are read then."""


async def test_each_change_makes_a_full_of_the_disks_that_it_is_about(short_tmp: Path, memory_home: Path) -> None:
    with LabClient.start(short_tmp) as lab:
        lab.create_vm(VM, DISKS)
        async with rehearsal(memory_home, lab) as node:
            ref = await node.ref(VM)
            await node.back_up(VM, ref)
            for number, (what, (happen, expected)) in enumerate(CASES.items()):
                for disk in range(len(lab.vm(VM)["disks"])):
                    lab.guest_write(VM, disk, 65536 * (number % 16), seed=number, length=65536)
                happen(lab)
                job = await node.back_up(VM, ref)
                assert job.status == "completed", f"{what}: {job.error_message}"
                found = Counter(INCREMENT if d.backup_type == "incremental" else d.reason for d in job.disks)
                assert found == expected, what
