"""Row 4: a vCenter fault, an expired session or a cut connection on each call that a backup makes.

Which calls those are is read from the lab, after backups that went well: a call that a backup learns to make is covered
without anybody's thinking of it. Each is spoiled where it comes first and where it comes last. Then the job has
recovered, or failed with a documented reason; when the faults are gone and what was left was swept, no snapshot of ours
is there, no layer is wrong (the rehearsal compares each with its snapshot), and the next backup succeeds.
"""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rehearsal import Rehearsal, rehearsal
from sendense_backup.model import COMPLETED, FAILED, Job, VmRef
from sendense_backup.workflows import release
from sendense_backup.workflows.runtime import Work
from sendense_lab.client import LabClient

pytestmark = pytest.mark.timeout(600)

DISKS = ["1M:blank", "1M:blank@1"]
CHANGES = ("CreateSnapshot_Task", "RemoveSnapshot_Task", "ReconfigVM_Task")
ALWAYS_RECOVERS = ("api-session-expired", "api-drop")
"""Who asks again after these loses nothing."""


@dataclass(frozen=True)
class Case:
    """A call to spoil: a method, how many of its calls pass before, and how the fault is called."""

    method: str
    after: int
    kind: str


def cases(calls: Counter[str], *kinds: str) -> list[Case]:
    """Returns the cases for the calls of a backup: first and last call of each method, each kind of fault."""
    return [
        Case(method, after, kind)
        for method, count in sorted(calls.items())
        for after in sorted({0, count - 1})
        for kind in kinds
    ]


class Vm:
    """A VM whose backups are disturbed."""

    def __init__(self, node: Rehearsal, name: str, ref: VmRef) -> None:
        self.node = node
        self.lab = node.lab
        self.name = name
        self.ref = ref
        self._seed = 0

    async def back_up(self) -> Job:
        self._seed += 1
        self.lab.guest_write(self.name, 0, 65536 * (self._seed % 16), seed=self._seed, length=65536)
        job: Job = await self.node.back_up(self.name, self.ref)
        return job

    async def calls_of_a_backup(self) -> Counter[str]:
        self.lab.calls(reset=True)
        job = await self.back_up()
        assert job.status == COMPLETED, job.error_message
        return Counter(each["method"] for each in self.lab.calls())

    async def survives(self, case: Case) -> str:
        """Runs a disturbed backup, and asserts what must hold after it; returns how it ended."""
        self.lab.calls(reset=True)
        fault = self.lab.set_fault(case.kind, method=case.method, after=case.after)
        job = await self.back_up()
        (cleared,) = [each for each in self.lab.clear_faults() if each["id"] == fault["id"]]
        made = sum(each["method"] == case.method for each in self.lab.calls())
        # How often a task is looked at depends on how fast it is: the last look may not happen this time.
        assert cleared["spoiled"] or made <= case.after, f"{case} was not met"
        assert job.status in (COMPLETED, FAILED)
        if job.status == FAILED:
            assert job.error_reason in documented_reasons(), f"{case}: {job.error_reason}: {job.error_message}"
        if case.kind in ALWAYS_RECOVERS:
            assert job.status == COMPLETED, f"{case}: {job.error_reason}: {job.error_message}"
        await self.sweep()
        left = [each for each in self.lab.snapshots(self.name) if not each["kept"]]
        assert left == [], f"{case} leaves {left}"
        return job.status

    async def sweep(self) -> None:
        """Gives back what ended jobs hold still, as the sweeper does."""
        catalogue = self.node.catalogue
        for backup_id in await catalogue.leases.left_behind():
            work = Work(self.node.runtime, backup_id, await catalogue.running.fence_ended(backup_id))
            assert await release.give_back(work) == []
            assert (await work.job()).alert == ""


def documented_reasons() -> set[str]:
    """Returns the reasons that docs/errors.md explains."""
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    return set(re.findall(r"^\| `([A-Z_]+)`", text, re.MULTILINE))


@pytest.fixture(scope="module")
def lab() -> Iterator[LabClient]:
    home = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with LabClient.start(home) as client:
            yield client
    finally:
        shutil.rmtree(home)


_numbers = itertools.count()


@asynccontextmanager
async def disturbed(home: Path, lab: LabClient) -> AsyncIterator[Vm]:
    lab.clear_faults()
    async with rehearsal(home, lab) as node:
        yield await fresh(node)


async def fresh(node: Rehearsal) -> Vm:
    """Returns a VM that was never backed up."""
    name = f"fresh-{next(_numbers)}"
    node.lab.create_vm(name, DISKS)
    return Vm(node, name, await node.ref(name))


@pytest.mark.parametrize("kind", ["api-error", "api-session-expired", "api-drop"])
async def test_each_call_of_an_increment_is_spoiled_once(memory_home: Path, lab: LabClient, kind: str) -> None:
    async with disturbed(memory_home, lab) as vm:
        await vm.calls_of_a_backup()
        calls = await vm.calls_of_a_backup()
        assert {"CreateSnapshot_Task", "QueryChangedDiskAreas", "RemoveSnapshot_Task", "ReadNextEvents"} <= set(calls)
        for case in cases(calls, kind):
            if await vm.survives(case) == FAILED:
                after = await vm.back_up()
                assert after.status == COMPLETED, f"after {case}: {after.error_message}"


async def test_each_further_call_of_a_first_backup_is_spoiled_once(memory_home: Path, lab: LabClient) -> None:
    async with disturbed(memory_home, lab) as vm:
        first = await vm.calls_of_a_backup()
        later = await vm.calls_of_a_backup()
        further = Counter({method: count for method, count in first.items() if method not in later})
        assert "ReconfigVM_Task" in further
        for case in cases(further, "api-error", "api-session-expired", "api-drop"):
            other = await fresh(vm.node)
            await other.survives(case)
            assert (await other.back_up()).status == COMPLETED


async def test_a_change_whose_answer_is_lost_is_neither_lost_nor_done_twice(memory_home: Path, lab: LabClient) -> None:
    async with disturbed(memory_home, lab) as vm:
        for method in CHANGES:
            other = await fresh(vm.node)
            status = await other.survives(Case(method, 0, "api-drop-answer"))
            assert status == COMPLETED


async def test_each_call_of_logging_in_again_is_spoiled_once(memory_home: Path, lab: LabClient) -> None:
    async with disturbed(memory_home, lab) as vm:
        await vm.calls_of_a_backup()
        usual = await vm.calls_of_a_backup()
        vm.lab.lose_sessions()
        vm.lab.set_fault("api-drop", method="FindAllByUuid")  # forgets the connections, too
        all_calls = await vm.calls_of_a_backup()
        vm.lab.clear_faults()
        further = Counter({method: count for method, count in all_calls.items() if method not in usual})
        assert "Login" in further
        for case in cases(further, "api-error", "api-drop"):
            vm.lab.lose_sessions()
            vm.lab.set_fault("api-drop", method="FindAllByUuid")
            await vm.survives(Case(case.method, 0, case.kind))
            assert (await vm.back_up()).status == COMPLETED
