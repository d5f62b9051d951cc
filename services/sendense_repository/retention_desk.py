"""Plans what rules remove from a repository, and does exactly that plan."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from blake3 import blake3

from sendense_db.columns import utc_now
from sendense_repository.deletion import Deleter
from sendense_repository.errors import InvalidValue, LayerDamaged
from sendense_repository.immutability import locked_until
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.records import Holder, LayerRecord, PointRecord, RepositoryRecord
from sendense_repository.registry import Registry
from sendense_repository.retention import MAX_KEPT, Candidate, Rules, Verdict, judge
from sendense_repository.store import Catalogue
from sendense_repository.store.retention import RetentionRun
from sendense_repository.trusted_clock import TrustedTime, read_machine
from sendense_repository.upkeep_errors import ClockInDoubt, PlanChanged, RetentionNotFound
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

INTERRUPTED = "RETENTION_INTERRUPTED"
"""Why a run failed whose process ended: starting it again goes on."""

_PLAN_LIVES = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A point in a plan; `stored_bytes` is what its layers take."""

    point: PointRecord
    verdict: Verdict
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What rules do to a repository.

    Attributes:
        repository: Where.
        vm_uuids: The VMs that were asked for, none for all.
        rules: The rules.
        as_of: The moment that ages were counted at.
        points: By VM, newest first.
        freed_bytes: What comes back, as far as it can be known before.
        needed_bytes: Room that is needed while it is done.
    """

    repository: RepositoryRecord
    vm_uuids: Sequence[str]
    rules: Rules
    as_of: datetime
    points: Sequence[PlannedPoint]
    freed_bytes: int = 0
    needed_bytes: int = 0

    @property
    def digest(self) -> str:
        """Stands for the decisions; costs do not count."""
        document = {
            "repository_id": self.repository.repository_id,
            "vm_uuids": sorted(self.vm_uuids),
            "rules": asdict(self.rules),
            "as_of": self.as_of.isoformat(),
            "points": [[each.point.backup_id, each.point.digest, each.verdict.rules] for each in self.points],
        }
        return blake3(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def removed(self) -> dict[str, list[str]]:
        """Returns for each VM the points that go, newest first."""
        found: dict[str, list[str]] = {}
        for each in self.points:
            if not each.verdict.keep:
                found.setdefault(each.point.vm_uuid, []).append(each.point.backup_id)
        return found


class RetentionDesk:
    """Plans and applies retention."""

    def __init__(self, catalogue: Catalogue, registry: Registry, view: IntegrityView, deleter: Deleter) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._view = view
        self._deleter = deleter
        self._running: dict[str, asyncio.Task[None]] = {}
        self._starting = asyncio.Lock()

    async def recover(self) -> None:
        """Says of runs that the last process did not end that they were interrupted; called at the start."""
        await self._catalogue.retention.end_running(INTERRUPTED, "the service ended; start it again to go on")

    async def plan(self, repository: str, vm_uuids: Sequence[str], rules: Rules) -> RetentionPlan:
        """Says what would be kept and removed, and how many bytes come back; changes nothing.

        Raises:
            RepositoryNotFound: There is no such repository.
            InvalidValue: A rule cannot be followed.
        """
        time = await self._time()
        decided = await self._decide(await self._registry.get(repository), vm_uuids, rules, _whole_seconds(time.now))
        freed = needed = 0
        for backup_ids in decided.removed().values():
            try:
                deletion = await self._deleter.plan(backup_ids, cascade=False)
            except LayerDamaged as error:
                # Its costs cannot be known; doing the plan will say so of this VM.
                log.warning("the costs of a removal are not known", backup_ids=backup_ids, error=str(error))
                continue
            freed += deletion.freed_bytes
            needed = max(needed, deletion.needed_bytes)
        return replace(decided, freed_bytes=freed, needed_bytes=needed)

    async def start(
        self, holder: Holder, repository: str, vm_uuids: Sequence[str], rules: Rules, as_of: datetime, digest: str
    ) -> RetentionRun:
        """Does exactly a plan, joins the run that does it, or returns how it ended; a failed run goes on.

        Raises:
            PlanChanged: Planning again, as of the plan's time, does not give that plan.
            ClockInDoubt: The clock is further than time can have passed.
        """
        async with self._starting:
            await self._catalogue.fences.admit(holder)
            known = await self._catalogue.retention.find(holder.job_id)
            if known is not None:
                if known.digest != digest:
                    raise PlanChanged(digest, known.digest)
                if known.state == "done" or holder.job_id in self._running:
                    return known
                run = replace(known, state="running", error_reason="", error_message="")
            else:
                run = await self._accept(holder, repository, vm_uuids, rules, as_of, digest)
            await self._catalogue.retention.put(run)
            self._running[run.run_id] = asyncio.create_task(self._run(holder, run))
            return run

    async def get(self, run_id: str) -> RetentionRun:
        """Returns a run as it is now.

        Raises:
            RetentionNotFound: There is none.
        """
        run = await self._catalogue.retention.find(run_id)
        if run is None:
            raise RetentionNotFound(run_id)
        return run

    async def finished(self, run_id: str) -> RetentionRun:
        """Waits until a run of this process has ended, and returns it."""
        task = self._running.get(run_id)
        if task is not None:
            await asyncio.wait([task])
        return await self.get(run_id)

    async def close(self) -> None:
        """Waits for the deletions that are under way; the rest of their plans goes on when it is started again."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _accept(
        self, holder: Holder, repository: str, vm_uuids: Sequence[str], rules: Rules, as_of: datetime, digest: str
    ) -> RetentionRun:
        time = await self._time()
        if time.in_doubt:
            raise ClockInDoubt(time.wall, time.now)
        record = await self._registry.use(repository)
        if not time.now - _PLAN_LIVES <= as_of <= time.now + timedelta(seconds=1):
            raise PlanChanged(digest, "")
        decided = await self._decide(record, vm_uuids, rules, as_of)
        if decided.digest != digest:
            raise PlanChanged(digest, decided.digest)
        return RetentionRun(
            run_id=holder.job_id,
            repository_id=record.repository_id,
            digest=digest,
            state="running",
            to_remove=decided.removed(),
            removed=(),
            freed_bytes=0,
            error_reason="",
            error_message="",
            started_at=utc_now(),
        )

    async def _time(self) -> TrustedTime:
        return await self._catalogue.clock.tick(read_machine())

    async def _decide(
        self, repository: RepositoryRecord, vm_uuids: Sequence[str], rules: Rules, as_of: datetime
    ) -> RetentionPlan:
        _check_rules(rules)
        known = await self._catalogue.points.vms(repository.repository_id)
        wanted = set(vm_uuids)
        points: list[PlannedPoint] = []
        for vm_uuid in known:
            if not wanted or vm_uuid in wanted:
                points += await self._decide_vm(repository, vm_uuid, rules, as_of)
        return RetentionPlan(repository, sorted(wanted), rules, as_of, points)

    async def _decide_vm(
        self, repository: RepositoryRecord, vm_uuid: str, rules: Rules, as_of: datetime
    ) -> list[PlannedPoint]:
        records = await self._catalogue.points.of_vm(repository.repository_id, vm_uuid)
        layers = await self._catalogue.layers.of_vm(repository.repository_id, vm_uuid)
        known = await self._view.of_points(records)
        candidates = [
            Candidate(
                backup_id=record.backup_id,
                sequence=record.sequence,
                committed_at=record.committed_at,
                state=known[record.backup_id].state,
                locked_until=locked_until(repository, record),
            )
            for record in records
        ]
        stored = _stored_bytes(layers)
        by_id = {record.backup_id: record for record in records}
        return [
            PlannedPoint(by_id[verdict.point.backup_id], verdict, stored.get(verdict.point.backup_id, 0))
            for verdict in judge(candidates, rules, as_of)
        ]

    async def _run(self, holder: Holder, run: RetentionRun) -> None:
        error: SendenseError | None = None
        try:
            for backup_ids in run.to_remove.values():
                left = [backup_id for backup_id in backup_ids if backup_id not in run.removed]
                if not left:
                    continue
                try:
                    # A deletion that began is not cut: it ends by itself.
                    gone = await asyncio.shield(self._deleter.delete(holder, left, cascade=False))
                except SendenseError as failed:
                    log.warning("points could not be removed", run_id=run.run_id, backup_ids=left, error=str(failed))
                    error = error or failed
                    continue
                run = replace(run, removed=[*run.removed, *left], freed_bytes=run.freed_bytes + gone.freed_bytes)
                await self._catalogue.retention.put(run)
            run = replace(run, state="failed" if error else "done")
            if error is not None:
                run = replace(run, error_reason=error.reason, error_message=error.message)
        except asyncio.CancelledError:
            run = replace(run, state="failed", error_reason=INTERRUPTED, error_message="the service was stopped")
            raise
        except Exception as failed:
            log.exception("retention failed", run_id=run.run_id)
            run = replace(run, state="failed", error_reason="INTERNAL", error_message=str(failed))
        finally:
            await asyncio.shield(self._catalogue.retention.put(run))
            del self._running[run.run_id]
        log.info("retention ended", run_id=run.run_id, state=run.state, removed=len(run.removed))


def _whole_seconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _check_rules(rules: Rules) -> None:
    for name, value in asdict(rules).items():
        if isinstance(value, int) and not 0 <= value <= (1 << 40 if name == "min_age_seconds" else MAX_KEPT):
            raise InvalidValue(f"rules.{name}", f"{value} is no number of things to keep")
    if rules.time_zone:
        try:
            ZoneInfo(rules.time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise InvalidValue("rules.time_zone", f"{rules.time_zone!r} is no IANA time zone") from error


def _stored_bytes(layers: Sequence[LayerRecord]) -> Mapping[str, int]:
    stored: dict[str, int] = {}
    for layer in layers:
        if layer.point_id is not None:
            stored[layer.point_id] = stored.get(layer.point_id, 0) + layer.stored_bytes
    return stored
