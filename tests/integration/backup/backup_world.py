"""The small world that the fakes of the backup service's ports share: strict about order and fencing.

Disks are small byte strings. A snapshot freezes them, a capture copies real bytes into a layer through an export, and
whatever a right implementation would refuse is refused here: an older attempt, an export name used twice, a capture
without export, a seal under an open export or with a gap in the journal, a commit of an unsealed layer.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sendense.agent.v1 import agent_pb2
from sendense.exports.v1 import exports_pb2
from sendense.repository.v1 import maintenance_pb2, retention_pb2, verification_pb2
from sendense_blockio.extents import Extent
from sendense_blockio.journal import decode_entries, entry_extents
from sendense_rpc.errors import Kind, SendenseError

CLUSTER = 4096
CAPACITY = 16 * CLUSTER
ROOM = 1 << 40
AGENT = "agent-1"
INSTALLATION_SNAPSHOT_PREFIX = "sendense-"


def refuse(reason: str, message: str = "", *, kind: Kind = Kind.FAILED_PRECONDITION, retryable: bool = False) -> Any:
    raise SendenseError(message or reason.lower(), kind=kind, reason=reason, retryable=retryable)


def the_rest_fails(cls: Any) -> Any:
    """Gives a fake the RPCs of its port that the backup service does not call: they fail the test."""
    (port,) = cls.__bases__

    def unused(name: str) -> Any:
        async def call(self: Any, request: Any, context: Any) -> Any:
            raise AssertionError(f"{port.__name__}.{name} is not used by the backup service")

        return call

    for name in vars(port):
        if name[0].isupper() and name not in vars(cls):
            setattr(cls, name, unused(name))
    return cls


@dataclass
class FakeDisk:
    key: int
    label: str
    content: bytearray
    epoch: str = field(default_factory=lambda: str(uuid.uuid4()))
    identity: str = field(default_factory=lambda: str(uuid.uuid4()))
    skip_reason: str = ""
    history: list[tuple[int, int]] = field(default_factory=list)
    """(sequence at the time, cluster) of each write."""


@dataclass
class FakeSnapshot:
    moref: str
    job: str
    installation: str
    disks: dict[int, bytes]
    change_ids: dict[int, str]


@dataclass
class FakeVm:
    name: str
    path: str
    disks: list[FakeDisk]
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    vcenter: str = "11111111-1111-1111-1111-111111111111"
    tracking: bool = False
    tracking_supported: bool = True
    template: bool = False
    free_bytes: int = 1 << 40
    plan_faults: list[str] = field(default_factory=list)
    capture_faults: list[str] = field(default_factory=list)
    foreign_snapshots: int = 0
    revert_finding: str = "no revert"
    sequence: int = 1
    snapshots: list[FakeSnapshot] = field(default_factory=list)

    def write(self, position: int, cluster: int, fill: bytes) -> None:
        disk = self.disks[position]
        disk.content[cluster * CLUSTER : (cluster + 1) * CLUSTER] = (fill * CLUSTER)[:CLUSTER]
        disk.history.append((self.sequence, cluster))


@dataclass
class FakeLayer:
    layer_id: str
    job: str
    vm_uuid: str
    disk_id: int
    identity: str
    kind: str
    parent: str
    chain: str
    change_id: str
    content: bytearray
    path: str
    state: str = "partial"
    areas: list[Extent] | None = None
    batches: list[bytes] = field(default_factory=list)

    def covered(self) -> list[Extent]:
        return entry_extents(entry for batch in self.batches for entry in decode_entries(batch))


@dataclass
class FakePoint:
    backup_id: str
    vm_uuid: str
    context: str
    vm_name: str
    layers: list[str]


class World:
    """All state, and the faults that a test asks for."""

    def __init__(self) -> None:
        self.vms: list[FakeVm] = []
        self.layers: dict[str, FakeLayer] = {}
        self.points: list[FakePoint] = []
        self.exports: dict[str, exports_pb2.CreateFileExportRequest] = {}
        self.export_names: set[str] = set()
        self.disk_numbers: dict[tuple[str, str], int] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[SendenseError]] = defaultdict(list)
        self.always: dict[str, SendenseError] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.hold_first: dict[tuple[str, str], asyncio.Event] = {}
        self.refused: set[tuple[str, str]] = set()
        self.held = asyncio.Event()
        self.agent_connected = True
        self.room = ROOM
        self.enabled = True
        self.batch_pause = 0.0
        self.capturing: dict[str, int] = defaultdict(int)
        self.operations: dict[str, maintenance_pb2.Operation] = {}
        self.retentions: dict[str, retention_pb2.RetentionRun] = {}
        self.verifications: dict[str, verification_pb2.Verification] = {}
        self.holders: list[str] = []
        self.corrupt: set[str] = set()
        self.deleted: set[str] = set()
        self.most_captures = 0

    async def enter(self, call: str, job: str = "") -> None:
        """Notes a call, and lets it fail or wait when a test asked for that.

        Args:
            call: The RPC.
            job: For whom a mutation is made: the first one of a VM waits for `hold_first`.
        """
        self.calls.append(call)
        waits = self.hold_first.pop((call, job.removeprefix("backup-").rsplit("-", 1)[0]), None)
        if waits is not None:
            await waits.wait()
        if call in self.holds:
            self.held.set()
            await self.holds[call].wait()
        if self.faults[call]:
            raise self.faults[call].pop(0)
        if call in self.always:
            raise self.always[call]

    def fence(self, service: str, job: str, attempt: int) -> None:
        """Refuses an attempt that is older than the last one seen for the job."""
        if attempt < 1:
            refuse("STALE_ATTEMPT", "attempts begin with 1", kind=Kind.ABORTED)
        if attempt < self.attempts.get((service, job), 0):
            self.refused.add((service, job))
            refuse("STALE_ATTEMPT", f"attempt {attempt} of {job} is old", kind=Kind.ABORTED)
        self.attempts[service, job] = attempt

    def vm(self, ref: agent_pb2.VmRef) -> FakeVm:
        for each in self.vms:
            if (each.vcenter, each.uuid) == (ref.vcenter_uuid, ref.vm_uuid):
                return each
        return refuse("VM_NOT_FOUND", kind=Kind.NOT_FOUND)  # type: ignore[no-any-return]

    def add_vm(self, name: str, disks: int = 1, path: str = "") -> FakeVm:
        made = []
        for number in range(disks):
            content = bytearray(CAPACITY)
            for cluster in range(0, 16, 2):
                content[cluster * CLUSTER : (cluster + 1) * CLUSTER] = bytes([65 + number]) * CLUSTER
            made.append(FakeDisk(2000 + number, f"Hard disk {number + 1}", content))
        vm = FakeVm(name, path or f"/DC/vm/{name}", made)
        self.vms.append(vm)
        return vm

    def seed_point(self, vm: FakeVm) -> FakePoint:
        """Gives a VM a full restore point of its content now, as an earlier backup would have left it."""
        vm.tracking = True
        vm.sequence += 1
        layers = []
        for number, disk in enumerate(vm.disks):
            self.disk_numbers[vm.uuid, disk.identity] = number
            name = f"seed-{vm.name}-{number}"
            layers.append(name)
            self.layers[name] = FakeLayer(
                layer_id=name,
                job=f"backup-{vm.name}-20200101000000",
                vm_uuid=vm.uuid,
                disk_id=number,
                identity=disk.identity,
                kind="full",
                parent="",
                chain=f"chain-{name}",
                change_id=f"{disk.epoch}/{vm.sequence}",
                content=bytearray(disk.content),
                path=f"/backups/{vm.uuid}/disk-{number}/{name}.qcow2",
                state="sealed",
            )
        point = FakePoint(f"backup-{vm.name}-20200101000000", vm.uuid, "ctx-seed", vm.name, layers)
        self.points.append(point)
        return point

    @property
    def clean(self) -> bool:
        """Whether nothing is left that a job acquired: no snapshot, export, partial or orphaned layer."""
        kept = {layer for point in self.points for layer in point.layers}
        return not self.exports and not any(vm.snapshots for vm in self.vms) and set(self.layers) == kept

    def left(self) -> str:
        snapshots = [s.moref for vm in self.vms for s in vm.snapshots]
        return f"exports {list(self.exports)}, snapshots {snapshots}, layers {list(self.layers)}"

    def point_contents(self, backup_id: str) -> list[bytes]:
        point = next(each for each in self.points if each.backup_id == backup_id)
        return [bytes(self.layers[layer].content) for layer in point.layers]
