"""What people do with backups: start, watch, cancel, delete, and see a VM's chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sendense_backup.errors import (
    AmbiguousVmName,
    BackupNotFound,
    BadPageToken,
    ExactlyOneVm,
    NoFullBackup,
    RepositoryDisabled,
    VmNotFound,
    VmOnSeveralAgents,
)
from sendense_backup.model import INCREMENTAL, Chain, Job, KnownVm, VmContext
from sendense_backup.store.admission import NewJob
from sendense_backup.workflows.runtime import Runtime
from sendense_rpc.identity import current_limits
from sendense_rpc.repeats import RequestIdReused

WATCH_SECONDS = 0.5
"""A watched job is looked at this often, so changes are told at most twice a second."""
HEARTBEAT_SECONDS = 15.0
"""A watched job that does not change is told again after this long."""


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What somebody asks for when starting a backup."""

    vm_name: str
    vm_uuid: str
    backup_type: str
    repository: str
    request_id: str
    quiesce: bool
    exclude_disks: tuple[str, ...] = ()


class Backups:
    """The use cases.

    Args:
        runtime: The parts.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.catalogue = runtime.catalogue
        self._runtime = runtime
        self._agents = runtime.agents
        self._repository = runtime.repository

    async def start(self, order: StartOrder) -> Job:
        """Queues a backup and returns it as `pending`; the same request again returns the same backup.

        Raises:
            ExactlyOneVm: Both or none of name and uuid.
            NoAgent: No agent is connected.
            VmNotFound: No connected agent knows the VM.
            AmbiguousVmName: Several VMs have the name.
            RemoteError: REPOSITORY_NOT_FOUND.
            OutsideLimits: The caller's token does not admit the VM or the repository.
            NoFullBackup: An increment with nothing to build on.
            BackupRunning: The VM has a job that has not ended.
        """
        if bool(order.vm_name) == bool(order.vm_uuid):
            raise ExactlyOneVm
        limits = current_limits()
        known = await self.catalogue.admission.known_request(order.request_id)
        if known is not None:
            if (order.vm_name or known.vm_name, order.backup_type) != (known.vm_name, known.requested_type):
                raise RequestIdReused(order.request_id)
            limits.require_vm(known.vm_name, known.ref.vm_uuid)
            limits.require_repository(known.repository, known.repository_id)
            return known
        found = await self._find(order)
        repository = await self._runtime.default_or(order.repository)
        limits.require_repository(repository.name, repository.repository_id)
        if not repository.enabled:
            raise RepositoryDisabled(repository.name)
        vm = found.vm
        if order.backup_type == INCREMENTAL:
            latest = await self._repository.latest_point(repository.repository_id, vm.ref.vm_uuid)
            if latest is None:
                raise NoFullBackup(vm.name, repository.name)
        job, new = await self.catalogue.admission.admit(
            NewJob(
                vm_name=vm.name,
                ref=vm.ref,
                agent_id=found.agent_id,
                requested_type=order.backup_type,
                repository=repository,
                quiesce=order.quiesce,
                exclude_disks=order.exclude_disks,
                request_id=order.request_id,
                datastores=await self._runtime.datastores_of(found),
            )
        )
        if new:
            self._runtime.place_free.set()
        return job

    async def _find(self, order: StartOrder) -> KnownVm:
        vms = await self._agents.find_vms(order.vm_name)
        if order.vm_uuid:
            vms = [each for each in vms if each.vm.ref.vm_uuid.lower() == order.vm_uuid.lower()]
        if not vms:
            raise VmNotFound(
                order.vm_name or order.vm_uuid,
                help_text="List the VMs that the connected agents know: sendense-ctl vm list",
            )
        limits = current_limits()
        admitted = [each for each in vms if limits.admits_vm(each.vm.name, each.vm.ref.vm_uuid)]
        if not admitted:
            limits.require_vm(vms[0].vm.name, vms[0].vm.ref.vm_uuid)
        vms = admitted
        if len(vms) > 1:
            if order.vm_uuid:
                raise VmOnSeveralAgents(order.vm_uuid, vms)
            raise AmbiguousVmName(order.vm_name, [(each.vm.ref.vm_uuid, each.vm.inventory_path) for each in vms])
        return vms[0]

    async def chain(self, vm_name: str, vm_uuid: str) -> tuple[VmContext, list[Chain]]:
        """Returns a VM's chains.

        Raises:
            VmNotFound: It was never backed up.
            AmbiguousVmName: Several VMs that were backed up have the name.
        """
        if bool(vm_name) == bool(vm_uuid):
            raise ExactlyOneVm
        contexts = self.catalogue.contexts
        found = await (contexts.named(vm_name) if vm_name else contexts.of_uuid(vm_uuid.lower()))
        limits = current_limits()
        found = [each for each in found if limits.admits_vm(each.vm_name, each.ref.vm_uuid)]
        if not found:
            raise VmNotFound(
                vm_name or vm_uuid, help_text="It was never backed up. List the backups: sendense-ctl backup list"
            )
        if len(found) > 1:
            raise AmbiguousVmName(vm_name or vm_uuid, [(each.ref.vm_uuid, each.context_id) for each in found])
        chains = await self._repository.chains(found[0].context_id)
        if limits.repositories:
            chains = [each for each in chains if await self._is_admitted(each.full_backup_id)]
        return found[0], chains

    async def _is_admitted(self, backup_id: str) -> bool:
        try:
            await self.catalogue.jobs.get(backup_id)
        except BackupNotFound:
            return False
        return True

    async def vms(
        self, vm_name: str, size: int, token: str
    ) -> tuple[Sequence[tuple[KnownVm, tuple[str, datetime] | None]], str]:
        """Returns a page of the VMs that the connected agents know, by name, and the token of the next page.

        Each comes with its newest completed backup.

        Raises:
            BadPageToken: The token is not one of ours.
        """
        if token and not (token.isdecimal() and token.isascii()):
            raise BadPageToken
        limits = current_limits()
        known = await self._agents.find_vms(vm_name)
        found = [each for each in known if limits.admits_vm(each.vm.name, each.vm.ref.vm_uuid)]
        start = int(token or 0)
        page = found[start : start + size]
        latest = await self.catalogue.contexts.latest_backups([each.vm.ref for each in page])
        following = str(start + size) if start + size < len(found) else ""
        return [(each, latest.get(each.vm.ref)) for each in page], following
