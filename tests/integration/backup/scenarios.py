"""For each workflow: a job of it that does everything, and what must be true when it has ended well.

The tests that kill and fail at each step ask the registry for the workflows; one without a scenario here fails them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

from backup_service import Client
from backup_world import FakeVm, World
from past_backups import REPOSITORY, past_backups

from sendense_backup.model import CONSOLIDATE, DELETE, RETENTION, SWEEP, VERIFY, Job, RetentionRules
from sendense_backup.store import Catalogue
from sendense_backup.store.operations import NewOperation

POINTS = 3


@dataclass
class Case:
    """One job of a workflow under test.

    Attributes:
        contents: What each restore point that was there before holds.
    """

    vm: FakeVm
    job_id: str = ""
    past: list[Job] = field(default_factory=list)
    contents: dict[str, list[bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """How a job of a workflow begins, and how it must end.

    Attributes:
        status: The status that it must end with.
        gone: Which of its past restore points are gone then, by place.
    """

    start: Callable[[Client, Catalogue, World, Case], Awaitable[str]]
    status: str = "completed"
    gone: tuple[int, ...] = ()
    makes_a_point: bool = False
    prepare: Callable[[FakeVm], None] = lambda vm: None


async def _backup(client: Client, catalogue: Catalogue, world: World, case: Case) -> str:
    return (await client.start(case.vm.name, "incremental")).backup_id


def _turn_full(vm: FakeVm) -> None:
    vm.plan_faults.append("AREAS_QUERY_FAILED")


def _fail_capture(vm: FakeVm) -> None:
    vm.capture_faults.append("CAPTURE_FAILED")


def _operation(kind: str, **arguments: object) -> Callable[[Client, Catalogue, World, Case], Awaitable[str]]:
    async def start(client: Client, catalogue: Catalogue, world: World, case: Case) -> str:
        del client, world
        ids = [job.backup_id for job in case.past]
        given = {
            DELETE: {"backup_ids": [ids[1]], "cascade": False},
            CONSOLIDATE: {"first_backup_id": ids[0], "last_backup_id": ids[-1]},
            RETENTION: {"vm_uuids": [case.vm.uuid], "rules": asdict(RetentionRules(keep_last=1))},
        }.get(kind, {})
        operation, _ = await catalogue.operations.admit(
            NewOperation(
                kind=kind,
                scope=case.vm.name,
                vm_context_id="" if kind == SWEEP else case.past[0].vm_context_id,
                vm_name=case.vm.name,
                backup_id="" if kind == SWEEP else ids[-1],
                repository_id=REPOSITORY.repository_id,
                arguments={**given, **arguments},
            )
        )
        return operation.operation_id

    return start


SCENARIOS: dict[str, Scenario] = {
    "backup": Scenario(_backup, makes_a_point=True, prepare=_turn_full),
    "release": Scenario(_backup, status="failed", prepare=_fail_capture),
    DELETE: Scenario(_operation(DELETE), gone=(1,)),
    CONSOLIDATE: Scenario(_operation(CONSOLIDATE), gone=(0, 1)),
    RETENTION: Scenario(_operation(RETENTION), gone=(0, 1)),
    VERIFY: Scenario(_operation(VERIFY)),
    SWEEP: Scenario(_operation(SWEEP)),
}


async def prepared(name: str, workflow: str, catalogue: Catalogue, world: World) -> Case:
    """Makes a VM with a past for a job of a workflow."""
    vm = world.add_vm(name)
    case = Case(vm, past=await past_backups(catalogue, world, vm, POINTS))
    case.contents = {job.backup_id: world.point_contents(job.backup_id) for job in case.past}
    SCENARIOS[workflow].prepare(vm)
    return case


def wrongs(workflow: str, case: Case, world: World, status: str) -> list[str]:
    """Returns what is not as it must be after a job has ended."""
    scenario = SCENARIOS[workflow]
    found = [] if status == scenario.status else [f"it is {status}"]
    points = {each.backup_id for each in world.points}
    for place, job in enumerate(case.past):
        if place in scenario.gone:
            found += [f"point {place} is still there"] if job.backup_id in points else []
        elif job.backup_id not in points:
            found.append(f"point {place} is gone")
        elif world.point_contents(job.backup_id) != case.contents[job.backup_id]:
            found.append(f"point {place} changed")
    made = [each for each in points if each not in case.contents and each == case.job_id]
    if scenario.makes_a_point != bool(made):
        found.append(f"restore points made: {made}")
    elif made and world.point_contents(made[0]) != [bytes(disk.content) for disk in case.vm.disks]:
        found.append("the restore point differs from its VM")
    return found
