"""A VM driven at random, against plain byte arrays: content of disks and snapshots, and what tracking names."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sendense_lab import diskspec, guest, hardware, registration, tracking
from sendense_lab.areas import GRANULARITY, merge, round_out, subtract
from sendense_lab.config import LabSettings
from sendense_lab.content import ByteStream
from sendense_lab.lab import Lab

KIB = 1024
SIZES = ("64K", "200K", "257K")  # not all in whole blocks
shares = st.floats(0, 0.999)


@dataclass
class Frozen:
    """A snapshot as the model knows it: content and change id by disk uuid."""

    parent: str | None
    content: dict[str, bytes]
    order: list[str]


@dataclass
class Model:
    """What must be true."""

    disks: dict[str, bytearray] = field(default_factory=dict)
    open: dict[str, Frozen] = field(default_factory=dict)
    kept: dict[str, Frozen] = field(default_factory=dict)
    current: str | None = None


class VmMachine(RuleBasedStateMachine):
    """One VM with tracking on, whose removed snapshots are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="lm-", dir="/tmp"))
        self.lab = Lab(LabSettings(home=self.home, keep_snapshots=True))
        self.model = Model()
        self.seed = 0

    @initialize()
    def create(self) -> None:
        specs = [diskspec.parse_disk(f"{size}:blank") for size in SIZES[:2]]
        self.vm = registration.create_vm(self.lab, "web", specs, seed=1, small_files=0)
        hardware.set_power(self.vm, "poweredOff")
        hardware.set_tracking(self.vm, True)
        hardware.set_power(self.vm, "poweredOn")
        self.model.disks = {disk.uuid: bytearray(disk.capacity) for disk in self.vm.record.disks}

    def teardown(self) -> None:
        self.lab.close()
        shutil.rmtree(self.home)

    @precondition(lambda self: self.model.disks)
    @rule(which=shares, where=shares, length=st.integers(1, 150 * KIB), zero=st.booleans())
    def write(self, which: float, where: float, length: int, zero: bool) -> None:
        uuid = list(self.model.disks)[int(which * len(self.model.disks))]
        content = self.model.disks[uuid]
        offset = int(where * len(content))
        length = min(length, len(content) - offset)
        self.seed += 1
        guest.write_bytes(self.vm, uuid, offset, None, self.seed, length, zero=zero)
        content[offset : offset + length] = bytes(length) if zero else ByteStream("write", self.seed).read(length)

    @precondition(lambda self: len(self.model.open) < 4)
    @rule()
    def snapshot(self) -> None:
        made = self.lab.create_snapshot(self.vm, "s", "", quiesce=False)
        content = {uuid: bytes(content) for uuid, content in self.model.disks.items()}
        self.model.open[made.moref] = Frozen(self.model.current, content, list(self.model.disks))
        self.model.current = made.moref

    @precondition(lambda self: self.model.open)
    @rule(which=shares, children=st.booleans(), merge_now=st.booleans())
    def remove_snapshot(self, which: float, children: bool, merge_now: bool) -> None:
        moref = list(self.model.open)[int(which * len(self.model.open))]
        self.lab.remove_snapshot(self.vm, moref, children=children, merge=merge_now)
        gone = self._descendants(moref) if children else [moref]
        parent = self.model.open[moref].parent
        for each in gone:
            self.model.kept[each] = self.model.open.pop(each)
        for left in self.model.open.values():
            left.parent = parent if left.parent == moref else left.parent
        if self.model.current in gone:
            self.model.current = parent

    def _descendants(self, moref: str) -> list[str]:
        children = [child for child, frozen in self.model.open.items() if frozen.parent == moref]
        return [moref, *(each for child in children for each in self._descendants(child))]

    @precondition(lambda self: self.model.open)
    @rule(which=shares)
    def revert(self, which: float) -> None:
        moref = list(self.model.open)[int(which * len(self.model.open))]
        self.lab.revert(self.vm, moref)
        frozen = self.model.open[moref]
        self.model.disks = {uuid: bytearray(frozen.content[uuid]) for uuid in frozen.order}
        self.model.current = moref
        assert self.vm.record.power_state == "poweredOff"
        hardware.set_power(self.vm, "poweredOn")

    @precondition(lambda self: len(self.model.disks) < 3)
    @rule(size=st.sampled_from(SIZES), bus=st.integers(0, 1))
    def add_disk(self, size: str, bus: int) -> None:
        spec = diskspec.parse_disk(f"{size}:blank@{bus}")
        disk = hardware.add_disk(self.vm, spec, small_files=0, stopping=self.lab.stopping)
        self.model.disks[disk.uuid] = bytearray(disk.capacity)

    @precondition(lambda self: self.model.disks)
    @rule(which=shares)
    def remove_disk(self, which: float) -> None:
        uuid = list(self.model.disks)[int(which * len(self.model.disks))]
        hardware.remove_disk(self.vm, uuid)
        del self.model.disks[uuid]

    @precondition(lambda self: self.model.disks)
    @rule(which=shares)
    def recreate_disk(self, which: float) -> None:
        position = int(which * len(self.model.disks))
        old = self.vm.disk_at(position)
        made = hardware.recreate_disk(self.vm, position, capacity=None, stopping=self.lab.stopping)
        assert made.key == old.key
        assert made.uuid != old.uuid
        order = [made.uuid if uuid == old.uuid else uuid for uuid in self.model.disks]
        del self.model.disks[old.uuid]
        self.model.disks[made.uuid] = bytearray(old.capacity)
        self.model.disks = {uuid: self.model.disks[uuid] for uuid in order}

    @precondition(lambda self: self.model.disks)
    @rule(which=shares, slot=st.sampled_from(["0:0", "0:1", "1:0", "1:5"]), position=shares)
    def move_disk(self, which: float, slot: str, position: float) -> None:
        uuid = list(self.model.disks)[int(which * len(self.model.disks))]
        place = int(position * len(self.model.disks))
        moved = hardware.move_disk(self.vm, uuid, slot=diskspec.parse_slot(slot), position=place)
        assert f"{moved.bus}:{moved.unit}" == slot
        assert len({disk.key for disk in self.vm.record.disks}) == len(self.model.disks)
        order = [each for each in self.model.disks if each != uuid]
        order.insert(place, uuid)
        self.model.disks = {each: self.model.disks[each] for each in order}

    @precondition(lambda self: self.model.disks and not self.model.open)
    @rule(which=shares, more=st.integers(1, 100), reset=st.booleans())
    def resize(self, which: float, more: int, reset: bool) -> None:
        uuid = list(self.model.disks)[int(which * len(self.model.disks))]
        content = self.model.disks[uuid]
        before = tracking.change_id(self.vm.disk_at(uuid).tracking)
        grown = hardware.resize_disk(self.vm, uuid, len(content) + more * KIB, reset_tracking=reset)
        content.extend(bytes(more * KIB))
        assert (tracking.change_id(grown.tracking) != before) == reset

    @rule()
    def restart(self) -> None:
        self.lab.close()
        self.lab = Lab(LabSettings(home=self.home, keep_snapshots=True))
        (self.vm,) = self.lab.machines.values()

    @rule()
    def register_again(self) -> None:
        old = self.vm.record
        new = registration.register_again(self.lab, self.vm)
        names = dict(zip([s.moref for s in old.snapshots], [s.moref for s in new.snapshots], strict=True))
        for frozen in self.model.open.values():
            frozen.parent = names.get(frozen.parent or "")
        self.model.open = {names[moref]: frozen for moref, frozen in self.model.open.items()}
        self.model.current = names.get(self.model.current or "")

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        record = self.vm.record
        assert [disk.uuid for disk in record.disks] == list(self.model.disks)
        assert record.current == self.model.current
        assert {s.moref: s.parent for s in record.snapshots} == {m: f.parent for m, f in self.model.open.items()}
        assert {path.name for path in self.vm.directory.iterdir()} == set(record.layers)
        for uuid, content in self.model.disks.items():
            assert self._export(uuid, None) == content
        for moref, frozen in (*self.model.open.items(), *self.model.kept.items()):
            for uuid, content in frozen.content.items():
                assert self._export(uuid, moref) == content
        if not self.vm.record.consolidation_needed and not self.model.open:
            assert all(layer.parent is None for layer in record.layers.values())

    @invariant()
    def tracking_names_what_changed_between_the_snapshots_that_the_vm_stands_on(self) -> None:
        line = self.vm.record.line()
        for position, older in enumerate(line):
            for disk in older.disks:
                now = self.vm.record.disk_like(disk)
                if now is None or disk.change_id is None or now.tracking is None:
                    continue
                if not disk.change_id.startswith(f"{now.tracking.uuid}/"):
                    continue
                old = self.model.open[older.moref].content[disk.uuid]
                targets = [(found, found.disks) for found in line[position:]]
                for newer, disks in targets:
                    for later in disks:
                        if later.uuid == disk.uuid and later.change_id:
                            areas = self.lab.changed_areas(self.vm, newer, later, disk.change_id)
                            self._covers(old, self.model.open[newer.moref].content[disk.uuid], areas)
                areas = self.lab.changed_areas(self.vm, None, now, disk.change_id)
                self._covers(old, bytes(self.model.disks[disk.uuid]), areas)

    def _covers(self, old: bytes, new: bytes, areas: tuple[tuple[int, int], ...]) -> None:
        size = len(new)
        blocks = range(0, size, GRANULARITY)
        differing = [(at, at + 1) for at in blocks if old[at : at + GRANULARITY] != new[at : at + GRANULARITY]]
        assert subtract(round_out(differing, size), areas) == ()
        assert merge(areas) == areas
        assert all(end <= size for _, end in areas)

    def _export(self, uuid: str, snapshot: str | None) -> bytes:
        output = self.home / "export"
        self.lab.export_disk(self.vm, uuid, snapshot, output)
        return output.read_bytes()


VmMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestVmMachine = VmMachine.TestCase
