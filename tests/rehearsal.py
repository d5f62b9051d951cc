"""Backups by the hundred: the real vCenter protocol, agent, decisions and steps; only the bytes take a short way.

What is real: the lab's vCenter in a process of its own, pyVmomi, the agent's use cases behind their gRPC edge, the
backup service's step functions and catalogue. What is not: no DBOS records the steps, and the bytes of the areas that
were planned, and of no others, come out of the lab's own export of the snapshot, without nbdkit and tunnel. So a block
that a plan lacks is a block that is wrong in the layer, at a tenth of the price of a whole node. The layers are arrays
in memory or what is stored for good (`stored_layers`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from capture_node import write_vcenters
from sendense.agent.v1 import agent_pb2_grpc
from sendense_agent.agent import Agent
from sendense_agent.config import AgentSettings
from sendense_agent.servicer import AgentServicer
from sendense_agent.vcenter import VCenters
from sendense_backup.clients.agents import AgentClient
from sendense_backup.config import BackupSettings
from sendense_backup.model import COMPLETED, FAILED, INCREMENTAL, Holder, Job, VmRef
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
from stored_layers import Layers, MemoryLayers
from support import serving

INSTALLATION = "rehearsal"


class OneAgent:
    """The agents' port: one that is always connected."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    async def agent(self, agent_id: str) -> AgentClient:
        del agent_id
        return self._client


class Rehearsal:
    """Runs backups of a lab's VMs."""

    def __init__(
        self, lab: LabClient, client: AgentClient, catalogue: Catalogue, layers: Layers, scratch: Path
    ) -> None:
        self.lab = lab
        self.agent = client
        self.catalogue = catalogue
        self.layers = layers
        self.repository = layers.repository
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
            repository=self.layers.place,
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
            await self.layers.fill(row, work.holder, exported[row.identity])
            await steps.SEAL.do(work, position)
        await steps.COMMIT.do(work)
        for row in (await work.job()).disks:
            if row.identity in exported:
                wrong = await self.layers.difference(row, exported[row.identity])
                assert not wrong, f"{row.label} ({row.reason}): {wrong}"
                exported[row.identity].unlink()
        await steps.UNSNAPSHOT.do(work)

    def _export(self, vm: str, moref: str, job: Job) -> dict[str, Path]:
        """Returns raw files with the content of the snapshot's disks by identity, as the lab has it."""
        listed = next(each for each in self.lab.snapshots(vm) if each["moref"] == moref)
        by_identity = {f"{disk['uuid']}/{disk['key']}": disk["uuid"] for disk in listed["disks"]}
        found = {}
        for disk in job.disks:
            if disk.status == "skipped":
                continue
            found[disk.identity] = self._scratch / f"{next(self._numbers)}.raw"
            self.lab.export(vm, by_identity[disk.identity], found[disk.identity], snapshot=moref)
        return found


@asynccontextmanager
async def rehearsal(home: Path, lab: LabClient, layers: Layers | None = None) -> AsyncIterator[Rehearsal]:
    """Opens agent and catalogue in a state directory with keys, to which `SENDENSE_HOME` points.

    Args:
        home: The state directory.
        lab: The vCenter.
        layers: Where layers are kept; in memory when it is not said.
    """
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
        yield Rehearsal(lab, AgentClient("lab", peer, INSTALLATION), catalogue, layers or MemoryLayers(), lab.root)
