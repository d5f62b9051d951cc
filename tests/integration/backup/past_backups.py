"""Restore points that earlier backups left, in the world and in the catalogue, without running those backups."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backup_world import FakePoint, FakeVm, World

from sendense_backup.model import COMPLETED, FULL, INCREMENTAL, Job, Repository, VmRef
from sendense_backup.store import Catalogue
from sendense_backup.store.admission import NewJob

REPOSITORY = Repository("repo-1", "local", "local", "/backups", enabled=True, available_size_bytes=1 << 40)
FIRST = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


async def past_backups(
    catalogue: Catalogue, world: World, vm: FakeVm, number: int, moved: int = 1000, first: datetime = FIRST
) -> list[Job]:
    """Gives a VM a chain of `number` restore points, a day apart, the first one full; its content differs in each."""
    made: list[Job] = []
    for place in range(number):
        kind = INCREMENTAL if place else FULL
        moment = first + timedelta(days=place)
        job, _ = await catalogue.admission.admit(
            NewJob(
                vm_name=vm.name,
                ref=VmRef(vm.vcenter, vm.uuid),
                agent_id="agent-1",
                requested_type=kind,
                repository=REPOSITORY,
                quiesce=False,
            ),
            moment,
        )
        await catalogue.running.set_type(job.backup_id, 0, kind, made[-1].backup_id if made else "")
        await catalogue.running.update_job(job.backup_id, 0, bytes_transferred=moved, total_bytes=moved)
        await catalogue.running.end(job.backup_id, 0, COMPLETED)
        point = world.seed_point(vm)
        _rename(world, point, job, parents=world.points[-2].layers if place else [""] * len(vm.disks))
        vm.write(0, 2 + place, bytes([90 + place]))
        made.append(job)
    return made


def _rename(world: World, point: FakePoint, job: Job, parents: list[str]) -> None:
    names = []
    for old, parent in zip(point.layers, parents, strict=True):
        layer = world.layers.pop(old)
        layer.layer_id = layer.path = f"{old}-{job.backup_id[-14:]}"
        layer.job, layer.parent, layer.kind = job.backup_id, parent, "incremental" if parent else "full"
        world.layers[layer.layer_id] = layer
        names.append(layer.layer_id)
    point.backup_id, point.context, point.layers = job.backup_id, job.vm_context_id, names
