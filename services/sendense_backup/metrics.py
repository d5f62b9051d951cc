"""What the backup service measures: jobs, ages of restore points, room, exports. Asked for when it is read."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import Gauge, Histogram

from sendense_backup.scheduler import Scheduler
from sendense_backup.workflows.runtime import Runtime
from sendense_db.columns import utc_now
from sendense_rpc.errors import SendenseError
from sendense_rpc.metrics import REGISTRY

JOBS = Gauge("sendense_jobs", "Jobs in the catalogue.", ["kind", "status", "reason"], registry=REGISTRY)
WAITING = Gauge("sendense_jobs_waiting", "Jobs in line.", registry=REGISTRY)
RATE = Gauge("sendense_backup_bytes_per_second", "Bytes a second that running backups move.", registry=REGISTRY)
MOVED = Gauge("sendense_backup_moved_bytes", "Bytes that all backups have moved.", registry=REGISTRY)
LAST_GOOD = Gauge(
    "sendense_vm_last_good_point_age_seconds",
    "Age of a VM's newest restore point.",
    ["vm_name", "vm_uuid"],
    registry=REGISTRY,
)
VERIFIED = Gauge(
    "sendense_vm_last_verification_age_seconds",
    "Time since a VM's restore points were last read back and found sound.",
    ["vm_name", "vm_uuid"],
    registry=REGISTRY,
)
ROOM = Gauge("sendense_repository_available_bytes", "Room for backups.", ["repository"], registry=REGISTRY)
SIZE = Gauge("sendense_repository_size_bytes", "Size of its file system.", ["repository"], registry=REGISTRY)
FULL_IN = Gauge(
    "sendense_repository_full_in_seconds",
    "When it is full at the present rate; absent while it does not grow.",
    ["repository"],
    registry=REGISTRY,
)
EXPORTS = Gauge("sendense_exports", "Exports that somebody holds.", registry=REGISTRY)
LEFT_BEHIND = Gauge("sendense_jobs_left_behind", "Ended jobs that still hold something.", registry=REGISTRY)
TICK = Gauge("sendense_scheduler_last_tick_seconds", "When the policies were last looked at.", registry=REGISTRY)
LATENCY = Histogram(
    "sendense_workflow_seconds",
    "How long jobs took, from being asked for to their end.",
    ["kind", "status"],
    buckets=(1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600),
    registry=REGISTRY,
)


class Metrics:
    """Brings the metrics up to date.

    Args:
        runtime: The parts.
        scheduler: Knows when it last ticked.
    """

    def __init__(self, runtime: Runtime, scheduler: Scheduler) -> None:
        self._runtime = runtime
        self._scheduler = scheduler
        self._seen_until = utc_now()

    async def refresh(self) -> None:
        """Asks the catalogue and the other services.

        Raises:
            SendenseError: Another service does not answer; what the catalogue knows is up to date all the same.
        """
        moment = utc_now()
        await self._jobs(moment)
        await self._points(moment)
        if self._scheduler.ticked_at is not None:
            TICK.set(self._scheduler.ticked_at.timestamp())
        await self._services(moment)

    async def _jobs(self, moment: datetime) -> None:
        measures = self._runtime.catalogue.measures
        JOBS.clear()
        for (kind, status, reason), number in (await self._runtime.catalogue.all_jobs.counts()).items():
            JOBS.labels(kind, status, reason).set(number)
        totals = await measures.totals()
        WAITING.set(totals.waiting)
        RATE.set(totals.rate)
        MOVED.set(totals.moved)
        LEFT_BEHIND.set(len(await self._runtime.catalogue.leases.left_behind()))
        for kind, status, seconds in await measures.ended_between(self._seen_until, moment):
            LATENCY.labels(kind, status).observe(seconds)
        self._seen_until = moment

    async def _points(self, moment: datetime) -> None:
        for gauge, ages in (
            (LAST_GOOD, await self._runtime.catalogue.measures.last_good()),
            (VERIFIED, await self._runtime.catalogue.measures.last_verified()),
        ):
            gauge.clear()
            for name, uuid, at in ages:
                gauge.labels(name, uuid).set((moment - at).total_seconds())

    async def _services(self, moment: datetime) -> None:
        failures: list[SendenseError] = []
        try:
            repositories = await self._runtime.repository.repositories()
        except SendenseError as error:
            failures.append(error)
        else:
            for gauge in (ROOM, SIZE, FULL_IN):
                gauge.clear()
            for each in repositories:
                ROOM.labels(each.name).set(each.available_size_bytes)
                SIZE.labels(each.name).set(each.total_size_bytes)
                if each.full_at is not None:
                    FULL_IN.labels(each.name).set((each.full_at - moment).total_seconds())
        try:
            EXPORTS.set(len(await self._runtime.exports.held()))
        except SendenseError as error:
            failures.append(error)
        if failures:
            raise failures[0]
