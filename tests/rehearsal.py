"""Backups by the hundred: the real vCenter protocol, agent, decisions and steps; only the bytes take a short way.

What is real: the lab's vCenter in a process of its own, pyVmomi, the agent's use cases behind their gRPC edge, the
backup service's step functions and catalogue. What is not: no DBOS records the steps, and layers are arrays in memory
that take exactly the areas that were planned, out of the lab's own export of the snapshot. So a block that a plan lacks
is a block that is wrong in the layer, at a tenth of the price of a whole node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from capture_node import write_vcenters
from sendense.agent.v1 import agent_pb2_grpc
from sendense_agent.agent import Agent
from sendense_agent.config import AgentSettings
from sendense_agent.servicer import AgentServicer
from sendense_agent.vcenter import VCenters
from sendense_backup.clients.agents import AgentClient, Pages
from sendense_backup.clients.repository import Areas, NewLayer, NewPoint
from sendense_backup.config import BackupSettings
from sendense_backup.model import COMPLETED, FAILED, FULL, INCREMENTAL, Holder, Job, Layer, Point, Repository, VmRef
from sendense_backup.store import Catalogue, metadata
from sendense_backup.store.admission import NewJob
from sendense_backup.store.job_log import LogEntry
from sendense_backup.store.jobs import JobFilter
from sendense_backup.workflows import backup as steps
from sendense_backup.workflows import release
from sendense_backup.workflows.runtime import Runtime, Work
from sendense_lab.client import LabClient
from sendense_rpc.channel import unix_peer
from sendense_rpc.errors import SendenseError
from sendense_rpc.server import Service, Servicer
from support import serving

CLUSTER = 64 * 1024
INSTALLATION = "rehearsal"
REPOSITORY = Repository("repo-1", "local", "local", "/backups", enabled=True, available_size_bytes=1 << 50)


@dataclass
class Stored:
    """A layer: its description, and the disk as it is read through the chain."""

    layer: Layer
    content: bytearray
    areas: list[tuple[int, int]] = field(default_factory=list)
    sealed: bool = False


class MemoryRepository:
    """The repository's port: layers and points in memory."""

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}
        self.points: list[Point] = []
        self._disks: dict[tuple[str, str], int] = {}

    async def repository(self, name: str) -> Repository:
        del name
        return REPOSITORY

    async def latest_point(self, repository_id: str, vm_uuid: str) -> Point | None:
        del repository_id
        return next((each for each in reversed(self.points) if each.vm_uuid == vm_uuid), None)

    async def point(self, backup_id: str) -> Point | None:
        return next((each for each in self.points if each.backup_id == backup_id), None)

    async def create_layer(self, new: NewLayer, holder: Holder) -> Layer:
        for each in self.stored.values():
            if not each.sealed and (each.layer.backup_id, each.layer.disk_identity) == (
                holder.job_id,
                new.disk_identity,
            ):
                return each.layer
        content = bytearray(new.virtual_size_bytes)
        if new.parent_layer_id:
            parent = self.stored[new.parent_layer_id]
            assert parent.sealed
            assert parent.layer.disk_identity == new.disk_identity
            assert len(parent.content) == len(content)
            content[:] = parent.content
        number = self._disks.setdefault((new.vm_uuid, new.disk_identity), len(self._disks))
        layer = Layer(
            layer_id=str(uuid.uuid4()),
            disk_id=number,
            disk_identity=new.disk_identity,
            backup_type=INCREMENTAL if new.parent_layer_id else FULL,
            backup_id=holder.job_id,
            chain_id=f"chain-{number}",
            parent_layer_id=new.parent_layer_id,
            path=f"/backups/{number}",
            virtual_size_bytes=new.virtual_size_bytes,
            stored_bytes=0,
            change_id=new.change_id,
            cluster_size_bytes=CLUSTER,
        )
        self.stored[layer.layer_id] = Stored(layer, content)
        return layer

    async def set_areas(self, layer_id: str, holder: Holder, pages: Pages) -> Areas:
        del holder
        stored = self.stored[layer_id]
        assert not stored.areas
        areas = [area async for page in pages for area in page]
        stored.areas = areas
        return Areas(len(areas), sum(length for _, length in areas), "digest")

    async def seal_layer(self, layer_id: str, holder: Holder, reason: str) -> Layer:
        del holder, reason
        self.stored[layer_id].sealed = True
        return self.stored[layer_id].layer

    async def discard_layer(self, layer_id: str, holder: Holder) -> None:
        del holder
        self.stored.pop(layer_id, None)

    async def commit_point(self, new: NewPoint, holder: Holder) -> Point:
        layers = tuple(self.stored[each].layer for each in new.layer_ids)
        point = Point(holder.job_id, new.repository_id, new.vm_uuid, layers, new.hardware_json)
        self.points.append(point)
        needed = {layer.layer_id for each in self.points[-2:] for layer in each.layers}
        self.stored = {name: each for name, each in self.stored.items() if name in needed}
        return point


class OneAgent:
    """The agents' port: one that is always connected."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    async def agent(self, agent_id: str) -> AgentClient:
        del agent_id
        return self._client


class Rehearsal:
    """Runs backups of a lab's VMs."""

    def __init__(self, lab: LabClient, client: AgentClient, catalogue: Catalogue, scratch: Path) -> None:
        self.lab = lab
        self.agent = client
        self.catalogue = catalogue
        self.repository = MemoryRepository()
        settings = BackupSettings(retry_seconds=120, max_snapshots=40, min_datastore_free_bytes=1)
        self.runtime = Runtime(
            catalogue=catalogue,
            agents=cast(Any, OneAgent(client)),
            repository=cast(Any, self.repository),
            maintenance=cast(Any, None),
            exports=cast(Any, None),
            settings=settings,
        )
        self._scratch = scratch
        self._numbers = itertools.count()

    async def ref(self, vm: str) -> VmRef:
        """Returns a VM's identity."""
        (found,) = await self.agent.list_vms(vm)
        return found.ref

    def set(self, **values: object) -> None:
        """Changes settings of the backup service."""
        self.runtime = dataclasses.replace(self.runtime, settings=self.runtime.settings.model_copy(update=dict(values)))

    def holder(self, job_id: str, attempt: int = 1) -> Holder:
        """Returns a holder, as a job's execution has it."""
        return Holder(job_id, attempt)

    async def log_of_last(self) -> Sequence[LogEntry]:
        """Returns the log of the newest job."""
        (job,), _ = await self.catalogue.jobs.page(JobFilter(), 1, "")
        return (await self.catalogue.log.page(job.backup_id, 1000, ""))[0]

    async def back_up(
        self, vm: str, ref: VmRef, requested: str = INCREMENTAL, *, frozen: Any = None, **options: Any
    ) -> Job:
        """Runs a backup to its end and returns the job; a failed one is released as the service does it.

        Args:
            vm: Its name.
            ref: Its identity.
            requested: `full` or `incremental`.
            frozen: Called when the snapshot is made, with its managed object id.
            options: Of the start: `quiesce`, `exclude_disks`.
        """
        new = NewJob(
            vm_name=vm,
            ref=ref,
            agent_id="lab",
            requested_type=requested,
            repository=REPOSITORY,
            **{"quiesce": False, **options},
        )
        job, _ = await self.catalogue.admission.admit(new)
        attempt = await self.catalogue.running.claim(job.backup_id)
        assert attempt
        work = Work(self.runtime, job.backup_id, attempt)
        await self.catalogue.running.start(job.backup_id, attempt)
        try:
            await self._steps(work, vm, frozen)
        except SendenseError as error:
            await work.log("error", "failed", str(error), reason=error.reason)
            await work.set_job(error_reason=error.reason, error_message=error.message)
            await release.give_back(work)
            await self.catalogue.running.end(job.backup_id, attempt, FAILED)
        else:
            await self.catalogue.running.end(job.backup_id, attempt, COMPLETED)
        return await self.catalogue.running.read(job.backup_id)

    async def _steps(self, work: Work, vm: str, frozen: Any) -> None:
        for step in (steps.INSPECT, steps.CHECK, steps.CHANGE_TRACKING):
            await step.do(work)
        outcome = await steps.SNAPSHOT.do(work)
        exported = await asyncio.to_thread(self._export, vm, outcome["moref"], await work.job())
        if frozen is not None:
            await asyncio.to_thread(frozen, outcome["moref"])
        for position in outcome["positions"]:
            await steps.DECIDE.do(work, position)
            await steps.LAYER.do(work, position)
            turn_full = (await steps.PLAN.do(work, position))["turn_full"]
            if turn_full:
                await steps.TURN_FULL.do(work, position, turn_full)
                await steps.LAYER.do(work, position)
                await steps.PLAN.do(work, position)
            row = await work.catalogue.running.disk(work.backup_id, position)
            content = exported[row.identity]
            stored = self.repository.stored[row.layer_id]
            for offset, length in stored.areas:
                stored.content[offset : offset + length] = content[offset : offset + length]
            await steps.SEAL.do(work, position)
            assert stored.content == content, self._wrong(row.label, row.reason, stored.content, content)
        await steps.COMMIT.do(work)
        await steps.UNSNAPSHOT.do(work)

    def _export(self, vm: str, moref: str, job: Job) -> dict[str, bytes]:
        """Returns the content of the snapshot's disks by identity, as the lab has it."""
        listed = next(each for each in self.lab.snapshots(vm) if each["moref"] == moref)
        by_identity = {f"{disk['uuid']}/{disk['key']}": disk["uuid"] for disk in listed["disks"]}
        found = {}
        for disk in job.disks:
            if disk.status == "skipped":
                continue
            file = self._scratch / f"{next(self._numbers)}.raw"
            self.lab.export(vm, by_identity[disk.identity], file, snapshot=moref)
            found[disk.identity] = file.read_bytes()
            file.unlink()
        return found

    def _wrong(self, label: str, reason: str, found: bytearray, wanted: bytes) -> str:
        blocks = [n for n in range(0, len(wanted), CLUSTER) if found[n : n + CLUSTER] != wanted[n : n + CLUSTER]]
        return f"{label} ({reason}): blocks at {blocks} are not the snapshot's"


@asynccontextmanager
async def rehearsal(home: Path, lab: LabClient) -> AsyncIterator[Rehearsal]:
    """Opens agent and catalogue in a state directory with keys, to which `SENDENSE_HOME` points."""
    settings = AgentSettings()
    backup_settings = BackupSettings()
    write_vcenters(settings.vcenters_file, lab.credentials())
    vcenters = VCenters(settings.vcenters_file)
    catalogue = Catalogue(backup_settings.catalogue_url)
    async with catalogue.database.begin() as connection:
        await connection.run_sync(metadata.create_all)

    async def fine() -> None:
        return

    servicer = Servicer(
        "sendense.agent.v1.AgentService",
        AgentServicer(Agent(vcenters, cast(Any, None), cast(Any, None))),
        agent_pb2_grpc.add_AgentServiceServicer_to_server,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(catalogue.close)
        stack.push_async_callback(vcenters.close)
        await stack.enter_async_context(serving(Service("agent", [servicer], fine), backup_settings))
        peer = unix_peer(backup_settings.socket("agent"), backup_settings.identity_file("backup"))
        stack.push_async_callback(peer.close)
        yield Rehearsal(lab, AgentClient("lab", peer, INSTALLATION), catalogue, home)
