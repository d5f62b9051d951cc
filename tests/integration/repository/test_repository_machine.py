"""Anything may happen to a repository, in any order: every restore point goes on reading as its snapshot was.

A hypothesis state machine backs one or two small disks up, fails, deletes with and without dependants, consolidates,
keeps the last few, mounts and restarts. The oracle is a flat byte array for each point and disk. `make soak` sets
`SENDENSE_MACHINE_RUNS` (runs of up to 100 steps) higher.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from repository_rig import CLUSTER, VM, Rig, content, entries_of, tree, write_image

from sendense_blockio.extents import Extent, merge, split
from sendense_blockio.journal import encode_entries
from sendense_repository.creation import NewLayer
from sendense_repository.errors import PointLeased, PointNotFound
from sendense_repository.point import NewPoint
from sendense_repository.records import Holder, PlacedLayer
from sendense_repository.store import metadata

RUNS_IN_CI = 25
RUNS = int(os.environ.get("SENDENSE_MACHINE_RUNS", str(RUNS_IN_CI)))
MORE_RUNS = 5
STEPS = 100
SECTORS = 8 * 128 + 3
SIZE = SECTORS * 512
DISKS = ("a", "b")
MOST_POINTS = 6
LEAST_STEPS = 2000 if RUNS >= RUNS_IN_CI else 0

ACTIONS = (
    "go on",
    "guest_writes",
    "consolidate",
    *["mount", "unmount"] * 2,
    "delete",
    *["go on"] * 14,
    *["guest_writes"] * 14,
    *["read", "retain", "fail", "restart"],
)
"""What may happen, as often as it stands here."""

steps_done = 0


@dataclass
class Job:
    """A backup under way: its layers so far, and what they are to read as."""

    name: str
    parents: dict[str, str | None]
    disks: dict[str, bytes]
    layers: dict[str, PlacedLayer] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    sealed: set[str] = field(default_factory=set)
    changed: dict[str, list[Extent]] = field(default_factory=dict)


class RepositoryMachine(RuleBasedStateMachine):
    """The model: points in order, each disk's parent point, leases, and a job."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.home = Path(tempfile.mkdtemp(prefix="machine-"))
        self.rig = Rig(self.home)
        self.runner.run(self._open())
        self.disks: tuple[str, ...] = ()
        self.guest: dict[str, bytearray] = {}
        self.dirty: dict[str, list[Extent]] = {}
        self.points: dict[str, dict[str, bytes]] = {}
        self.layers: dict[tuple[str, str], PlacedLayer] = {}
        self.parents: dict[tuple[str, str], str | None] = {}
        self.leases: dict[str, str] = {}
        self.job: Job | None = None
        self.count = 0

    async def _open(self) -> None:
        async with self.rig.database.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await self.rig.start()

    def teardown(self) -> None:
        try:
            self._require_all_points()
            if self.job is None:
                left = [
                    name for name in tree(self.rig.root) if ".merged" in name or ".partial" in name or ".new-" in name
                ]
                assert left == []
        finally:
            self.rig.parts.journals.close_all()
            self.runner.run(self.rig.database.close())
            self.runner.close()
            shutil.rmtree(self.rig.work_dir, ignore_errors=True)
            shutil.rmtree(self.home)

    def _read(self, point: str, disk: str) -> bytes:
        return content(self.rig.image(self.layers[point, disk]), self.rig.scratch)

    def _require_all_points(self) -> None:
        for point, disks in self.points.items():
            for disk in self.disks:
                assert self._read(point, disk) == disks[disk], (point, disk)

    @initialize(disks=st.sampled_from((DISKS[:1], DISKS[:1], DISKS)))
    def begin(self, disks: tuple[str, ...]) -> None:
        """The guest's disks, with something on them."""
        self.disks = disks
        for disk in disks:
            self.guest[disk] = bytearray(SIZE)
            self.guest[disk][: 2 * CLUSTER] = bytes(range(1, 129)) * (2 * CLUSTER // 128)
            self.dirty[disk] = []

    @rule(action=st.sampled_from(ACTIONS), data=st.data())
    def anything(self, action: str, data: st.DataObject) -> None:
        """One step; what is not possible now lets the backup go on instead."""
        global steps_done
        steps_done += 1
        if action == "guest_writes":
            self.guest_writes(data)
        elif action == "restart":
            self.runner.run(self.rig.restart())
        elif action == "fail" and self.job is not None:
            self.fail()
        elif action == "unmount" and self.leases:
            self.unmount(data)
        elif action in {"delete", "mount", "read"} and self.points:
            {"delete": self.delete, "mount": self.mount, "read": self.read}[action](data)
        elif action in {"consolidate", "retain"} and len(self.points) > 1:
            {"consolidate": self.consolidate, "retain": self.retain}[action](data)
        else:
            self._go_on(data)

    def _go_on(self, data: st.DataObject) -> None:
        """The backup takes its next step: create, write and seal each disk, commit."""
        job = self.job
        if job is None:
            self.create(data) if len(self.points) < MOST_POINTS else self.retain(data)
        elif len(job.written) < len(self.disks):
            self.write()
        elif len(job.sealed) < len(self.disks):
            self.seal()
        else:
            self.commit()

    def guest_writes(self, data: st.DataObject) -> None:
        """The guest writes, or zeroes, sectors; half of the time whole clusters."""
        disk = data.draw(st.sampled_from(self.disks))
        sector, sectors = data.draw(st.integers(0, SECTORS - 1)), data.draw(st.integers(1, 3 * 128))
        fill, whole = data.draw(st.integers(0, 255)), data.draw(st.booleans())
        start = sector * 512
        end = min(SIZE, start + sectors * 512)
        if whole:
            start -= start % CLUSTER
            end = min(SIZE, -(-end // CLUSTER) * CLUSTER)
        self.guest[disk][start:end] = bytes([fill]) * (end - start)
        self.dirty[disk].append(Extent(start, end - start))

    def create(self, data: st.DataObject) -> None:
        """A backup begins: a layer for each disk, on its parent or as a full."""
        full = data.draw(st.sampled_from(("none", "none", "none", "none", "a", "both")))
        latest = next(reversed(self.points), None)
        parents = {disk: None if full in {disk, "both"} else latest for disk in self.disks}
        self.count += 1
        self.job = Job(f"job-{self.count}", parents, {disk: bytes(self.guest[disk]) for disk in self.disks})
        for disk in self.disks:
            parent = parents[disk]
            below = self.layers[parent, disk].layer.layer_id if parent is not None else ""
            wanted = NewLayer("local", VM, f"disk-{disk}", SIZE, below, "change", 0)
            self.job.layers[disk] = self.runner.run(self.rig.parts.maker.create(Holder(self.job.name, 1), wanted))
            areas = merge(self.dirty[disk]) if parent is not None else [Extent(0, SIZE)]
            self.job.changed[disk] = areas
        self.dirty = {disk: [] for disk in self.disks}

    def write(self) -> None:
        """One disk's areas are fixed, written and journaled."""
        job = self._running()
        disk = next(each for each in self.disks if each not in job.written)
        self.runner.run(self._write(job, disk))
        job.written.add(disk)

    async def _write(self, job: Job, disk: str) -> None:
        holder, layer = Holder(job.name, 1), job.layers[disk].layer
        areas, image = job.changed[disk], layer.files(self.rig.root).image
        await self.rig.parts.layers.set_areas(holder, layer.layer_id, areas)
        entries = entries_of(job.disks[disk], areas)
        data = [Extent(each.offset, each.length) for each in entries if not each.is_zero]
        zeroes = [Extent(each.offset, each.length) for each in entries if each.is_zero and job.parents[disk]]
        await asyncio.to_thread(write_image, image, job.disks[disk], data, list(split(zeroes, SIZE)), self.rig.scratch)
        if entries:
            await self.rig.parts.layers.append(holder, layer.layer_id, 1, encode_entries(entries))

    def seal(self) -> None:
        """A written layer is sealed."""
        job = self._running()
        disk = min(job.written - job.sealed)
        layer_id = job.layers[disk].layer.layer_id
        job.layers[disk] = self.runner.run(self.rig.parts.sealer.seal(Holder(job.name, 1), layer_id, "test"))
        job.sealed.add(disk)

    def commit(self) -> None:
        """The job's layers become a restore point."""
        job = self._running()
        ids = [job.layers[disk].layer.layer_id for disk in self.disks]
        wanted = NewPoint("local", VM, "web", "ctx", ids, None, "")
        self.runner.run(self.rig.parts.points.commit(Holder(job.name, 1), wanted))
        self.points[job.name] = job.disks
        for disk in self.disks:
            self.layers[job.name, disk] = job.layers[disk]
            self.parents[job.name, disk] = job.parents[disk]
        self.job = None

    def fail(self) -> None:
        """The job fails: its layers are dropped, no chain changed."""
        job = self._running()
        for disk in self.disks:
            layer_id = job.layers[disk].layer.layer_id
            self.runner.run(self.rig.parts.layers.discard(Holder(job.name, 1), layer_id))
            self.dirty[disk] += job.changed[disk]
        self.job = None

    def delete(self, data: st.DataObject) -> None:
        """Some points are deleted, with or without those that build on them."""
        cascade = data.draw(st.sampled_from((False, False, True)))
        gone = data.draw(st.sets(st.sampled_from(list(self.points)), min_size=1, max_size=2))
        self._delete(gone, cascade=cascade)

    def consolidate(self, data: st.DataObject) -> None:
        """A run of points becomes its last one, as an operation."""
        names = list(self.points)
        last = data.draw(st.integers(1, len(names) - 1))
        first = data.draw(st.integers(0, last - 1))
        gone = set(names[first:last])
        holders = self._holders(gone)
        work = self._consolidate(names[first], names[last])
        if holders:
            with pytest.raises(PointLeased):
                self.runner.run(work)
            return
        self.runner.run(work)
        self._forget(gone)

    async def _consolidate(self, first: str, last: str) -> None:
        self.count += 1
        operations = self.rig.parts.operations
        operation = await operations.consolidate(Holder(f"merge-{self.count}", 1), first, last, wait_seconds=0)
        async with asyncio.timeout(300):
            await operation.ended.wait()
        assert operation.error is None, operation.error

    def retain(self, data: st.DataObject) -> None:
        """Only the last few points are kept."""
        keep = data.draw(st.integers(1, 3))
        gone = set(list(self.points)[:-keep])
        if gone:
            self._delete(gone, cascade=False)

    def _delete(self, gone: set[str], *, cascade: bool) -> None:
        if cascade:
            gone = self._with_dependants(gone)
        self.count += 1
        work = self.rig.parts.deleter.delete(Holder(f"delete-{self.count}", 1), gone, cascade=cascade)
        if self._holders(gone):
            with pytest.raises(PointLeased):
                self.runner.run(work)
            return
        done = self.runner.run(work)
        assert set(done.backup_ids) == gone
        self._forget(gone)

    def mount(self, data: st.DataObject) -> None:
        """Somebody reads a point: it stays as it is."""
        point = data.draw(st.sampled_from(list(self.points)))
        self.runner.run(self.rig.parts.points.lease(point, f"mount-{point}", 3600))
        self.leases[f"mount-{point}"] = point

    def unmount(self, data: st.DataObject) -> None:
        """A reader ends."""
        holder = data.draw(st.sampled_from(sorted(self.leases)))
        self.runner.run(self.rig.parts.points.release(self.leases.pop(holder), holder))

    def read(self, data: st.DataObject) -> None:
        """A point is restored with plain qemu."""
        point = data.draw(st.sampled_from(list(self.points)))
        disk = data.draw(st.sampled_from(self.disks))
        assert self._read(point, disk) == self.points[point][disk]

    def _running(self) -> Job:
        assert self.job is not None
        return self.job

    def _children(self, of: set[str]) -> set[str]:
        return {point for (point, _), parent in self.parents.items() if parent in of} - of

    def _with_dependants(self, gone: set[str]) -> set[str]:
        while more := self._children(gone):
            gone = gone | more
        return gone

    def _holders(self, gone: set[str]) -> bool:
        """Whether somebody reads through a layer of a point that is to go: a lease, or the running job."""
        for disk in self.disks:
            reached = set(gone)
            while (
                more := {point for (point, each), parent in self.parents.items() if each == disk and parent in reached}
                - reached
            ):
                reached |= more
            if reached & set(self.leases.values()):
                return True
            if self.job is not None and self.job.parents[disk] in reached:
                return True
        return False

    def _forget(self, gone: set[str]) -> None:
        """What a deletion does to the model: points go, parents are those that are left; all others read as before."""
        newest = next(reversed(self.points))
        for key in list(self.parents):
            parent = self.parents[key]
            while parent in gone:
                parent = self.parents[parent, key[1]]
            self.parents[key] = parent
        for point in gone:
            del self.points[point]
            for disk in self.disks:
                del self.parents[point, disk], self.layers[point, disk]
            with pytest.raises(PointNotFound):
                self.runner.run(self.rig.parts.points.get(point))
        if newest in gone:
            # The next increment builds on an older point: all that changed since then is to be copied.
            self.dirty = {disk: [Extent(0, SIZE)] for disk in self.disks}
        point = next(reversed(self.points), None)
        if point is not None:
            for disk in self.disks:
                assert self._read(point, disk) == self.points[point][disk]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.timeout(1200 if RUNS <= RUNS_IN_CI else 0)
def test_every_point_reads_as_its_snapshot_was_whatever_happens() -> None:
    # How long a run is depends on what hypothesis draws, and that on the modules that happen to be loaded.
    for number, runs in enumerate(itertools.chain([RUNS], itertools.repeat(MORE_RUNS))):
        machine = seed(number)(RepositoryMachine) if RUNS == RUNS_IN_CI else RepositoryMachine
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=runs,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
                print_blob=True,
            ),
        )
        if steps_done >= LEAST_STEPS:
            break
