"""Fakes of what the repository service does to restore points that exist: delete, consolidate, retain, verify.

Strict as the real one: an older attempt is refused, nobody reads a point while it goes, and the content of every point
that stays is what it was (a layer here always holds the disk's whole content).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from backup_world import FakePoint, World, refuse, the_rest_fails

from sendense.repository.v1 import (
    integrity_pb2,
    maintenance_pb2,
    maintenance_pb2_grpc,
    retention_pb2,
    retention_pb2_grpc,
    verification_pb2,
    verification_pb2_grpc,
)
from sendense_rpc.errors import Kind

FREED = 1000
"""Bytes that each point gives back."""


def _with_dependants(world: World, backup_ids: Sequence[str]) -> list[FakePoint]:
    named = [each for each in world.points if each.backup_id in backup_ids]
    gone = list(named)
    for point in named:
        place = world.points.index(point)
        for each in world.points[place + 1 :]:
            if each.vm_uuid != point.vm_uuid:
                continue
            if not any(world.layers[layer].parent for layer in each.layers):
                break  # a full begins a chain of its own
            if each not in gone:
                gone.append(each)
    return sorted(gone, key=world.points.index, reverse=True)


def _plan(world: World, backup_ids: Sequence[str], *, cascade: bool) -> maintenance_pb2.DeletionPlan:
    for each in backup_ids:
        if each not in {point.backup_id for point in world.points} | world.deleted:
            refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)
    gone = _with_dependants(world, backup_ids) if cascade else []
    if not cascade:
        gone = [each for each in reversed(world.points) if each.backup_id in backup_ids]
    merges = [
        maintenance_pb2.LayerMerge(into_layer_id=layer.layer_id, into_backup_id=layer.job, layer_ids=[layer.parent])
        for layer in world.layers.values()
        if layer.parent in {each for point in gone for each in point.layers}
        and layer.job not in {point.backup_id for point in gone}
    ]
    return maintenance_pb2.DeletionPlan(
        deleted_backup_ids=[each.backup_id for each in gone],
        merges=merges,
        freed_bytes=FREED * len(gone),
        holders=world.holders,
    )


def _remove(world: World, plan: maintenance_pb2.DeletionPlan) -> None:
    for merge in plan.merges:
        layer = world.layers[merge.into_layer_id]
        gone = {each for point in world.points if point.backup_id in plan.deleted_backup_ids for each in point.layers}
        while layer.parent in gone:
            layer.parent = world.layers[layer.parent].parent
        layer.kind = "incremental" if layer.parent else "full"
    for backup_id in plan.deleted_backup_ids:
        point = next(each for each in world.points if each.backup_id == backup_id)
        world.points.remove(point)
        world.deleted.add(backup_id)
        for layer_id in point.layers:
            del world.layers[layer_id]


@the_rest_fails
class FakeMaintenance(maintenance_pb2_grpc.MaintenanceServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def PlanDeletion(
        self, request: maintenance_pb2.PlanDeletionRequest, context: Any
    ) -> maintenance_pb2.DeletionPlan:
        await self._world.enter("PlanDeletion")
        return _plan(self._world, request.backup_ids, cascade=request.cascade)

    async def StartDeletion(
        self, request: maintenance_pb2.StartDeletionRequest, context: Any
    ) -> maintenance_pb2.Operation:
        await self._world.enter("StartDeletion")
        return await self._start("deletion", request.holder, list(request.backup_ids), cascade=request.cascade)

    async def StartConsolidation(
        self, request: maintenance_pb2.StartConsolidationRequest, context: Any
    ) -> maintenance_pb2.Operation:
        world = self._world
        await world.enter("StartConsolidation")
        ids = [each.backup_id for each in world.points]
        if request.last_backup_id not in ids:
            refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)
        vm = next(each.vm_uuid for each in world.points if each.backup_id == request.last_backup_id)
        first = ids.index(request.first_backup_id) if request.first_backup_id in ids else 0
        run = world.points[first : ids.index(request.last_backup_id)]
        gone = [each.backup_id for each in run if each.vm_uuid == vm]
        return await self._start("consolidation", request.holder, gone, cascade=False)

    async def _start(
        self, kind: str, holder: Any, backup_ids: list[str], *, cascade: bool
    ) -> maintenance_pb2.Operation:
        world = self._world
        world.fence("repository", holder.job_id, holder.attempt)
        known = world.operations.get(holder.job_id)
        if known is None:
            plan = _plan(world, backup_ids, cascade=cascade)
            state = "waiting" if world.holders else "running"
            known = maintenance_pb2.Operation(
                operation_id=holder.job_id, kind=kind, state=state, plan=plan, bytes_total=100, holders=world.holders
            )
            world.operations[holder.job_id] = known
            await world.enter("StartDeletion.answer")
        return known

    async def WatchOperation(
        self, request: maintenance_pb2.GetOperationRequest, context: Any
    ) -> AsyncIterator[maintenance_pb2.Operation]:
        world = self._world
        await world.enter("WatchOperation")
        known = world.operations.get(request.operation_id)
        if known is None:
            refuse("OPERATION_NOT_FOUND", kind=Kind.NOT_FOUND)
        assert known is not None
        yield known
        while world.holders:  # noqa: ASYNC110  # the test lets them go
            await asyncio.sleep(0.02)
        if known.state != "done":
            known.state = "running"
            for done in (25, 50, 75, 100):
                known.bytes_done = done
                yield known
                await world.enter("WatchOperation.page")
            if known.state != "done":
                _remove(world, known.plan)
                known.state, known.freed_bytes = "done", known.plan.freed_bytes
        yield known


@the_rest_fails
class FakeRetention(retention_pb2_grpc.RetentionServiceServicer):
    """Knows one rule: the newest `keep_last` points of a VM stay."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _planned(self, repository_id: str, vm_uuids: Sequence[str], rules: Any) -> retention_pb2.RetentionPlan:
        plan = retention_pb2.RetentionPlan(repository_id=repository_id, vm_uuids=vm_uuids, rules=rules)
        for vm_uuid in vm_uuids:
            mine = [each for each in self._world.points if each.vm_uuid == vm_uuid]
            kept = mine[-rules.keep_last :] if rules.keep_last else mine
            for each in mine:
                keep = each in kept
                plan.points.add(
                    backup_id=each.backup_id,
                    vm_uuid=vm_uuid,
                    vm_name=each.vm_name,
                    keep=keep,
                    rules=["last"] if keep else [],
                    stored_bytes=FREED,
                )
        going = [each.backup_id for each in plan.points if not each.keep]
        plan.freed_bytes = FREED * len(going)
        plan.digest = ",".join(going) or "nothing"
        plan.as_of.GetCurrentTime()
        return plan

    async def PlanRetention(
        self, request: retention_pb2.PlanRetentionRequest, context: Any
    ) -> retention_pb2.RetentionPlan:
        await self._world.enter("PlanRetention")
        return self._planned(request.repository_id, request.vm_uuids, request.rules)

    async def StartRetention(
        self, request: retention_pb2.StartRetentionRequest, context: Any
    ) -> retention_pb2.RetentionRun:
        world = self._world
        await world.enter("StartRetention")
        world.fence("repository", request.holder.job_id, request.holder.attempt)
        known = world.retentions.get(request.holder.job_id)
        if known is None:
            plan = request.plan
            now = self._planned(plan.repository_id, plan.vm_uuids, plan.rules)
            if now.digest != plan.digest:
                refuse("PLAN_CHANGED", kind=Kind.ABORTED)
            going = [each.backup_id for each in now.points if not each.keep]
            known = retention_pb2.RetentionRun(
                run_id=request.holder.job_id, digest=now.digest, state="running", remaining_backup_ids=going
            )
            world.retentions[request.holder.job_id] = known
            await world.enter("StartRetention.answer")
        return known

    async def GetRetention(
        self, request: retention_pb2.GetRetentionRequest, context: Any
    ) -> retention_pb2.RetentionRun:
        world = self._world
        await world.enter("GetRetention")
        known = world.retentions.get(request.run_id)
        if known is None:
            refuse("RETENTION_NOT_FOUND", kind=Kind.NOT_FOUND)
        assert known is not None
        if known.remaining_backup_ids:  # one point a look
            gone = known.remaining_backup_ids.pop(0)
            _remove(world, _plan(world, [gone], cascade=False))
            known.removed_backup_ids.append(gone)
            known.freed_bytes += FREED
        if not known.remaining_backup_ids:
            known.state = "done"
        return known


@the_rest_fails
class FakeVerification(verification_pb2_grpc.VerificationServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def StartVerification(
        self, request: verification_pb2.StartVerificationRequest, context: Any
    ) -> verification_pb2.Verification:
        world = self._world
        await world.enter("StartVerification")
        if request.backup_id not in {each.backup_id for each in world.points}:
            refuse("POINT_NOT_FOUND", kind=Kind.NOT_FOUND)
        known = world.verifications.setdefault(
            request.verification_id,
            verification_pb2.Verification(
                verification_id=request.verification_id, backup_id=request.backup_id, state="running", total_bytes=100
            ),
        )
        await world.enter("StartVerification.answer")
        return known

    async def WatchVerification(
        self, request: verification_pb2.GetVerificationRequest, context: Any
    ) -> AsyncIterator[verification_pb2.Verification]:
        world = self._world
        await world.enter("WatchVerification")
        known = world.verifications.get(request.verification_id)
        if known is None:
            refuse("VERIFICATION_NOT_FOUND", kind=Kind.NOT_FOUND)
        assert known is not None
        for done in (0, 50, 100):
            if known.state == "running":
                known.done_bytes = done
                yield known
                await world.enter("WatchVerification.page")
        if known.state == "running":
            known.state = "done"
            corrupt = known.backup_id in world.corrupt
            known.integrity.state = "corrupt" if corrupt else "verified"
            if corrupt:
                known.integrity.damages.append(
                    integrity_pb2.Damage(backup_id=known.backup_id, part="data", offset=4096, finding="another digest")
                )
        yield known

    async def CancelVerification(
        self, request: verification_pb2.CancelVerificationRequest, context: Any
    ) -> verification_pb2.Verification:
        known = self._world.verifications[request.verification_id]
        known.state = "cancelled"
        return known
