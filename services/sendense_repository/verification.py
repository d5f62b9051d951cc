"""Verifications of restore points: started or joined, watched, cancelled; what they find is kept.

A point is verified by reading every layer of its chains, the full first, and its points file. Each layer's outcome is
kept as soon as it is known, so that an interrupted verification goes on where it was. While it runs the point is
leased: nobody merges or deletes what is being read.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from sendense_blockio.errors import BlockIOError
from sendense_db.columns import utc_now
from sendense_qemu.errors import QemuError
from sendense_repository.errors import PointNotFound
from sendense_repository.integrity import Check, Damage
from sendense_repository.integrity_view import IntegrityView
from sendense_repository.layer_check import LayerCheck, check_point_file
from sendense_repository.parentage import ancestry
from sendense_repository.point import PlacedPoint, PointDesk
from sendense_repository.reading_back import Pace, ReadBack, ReadingCancelled, open_read_back
from sendense_repository.records import LayerRecord
from sendense_repository.store import Catalogue
from sendense_repository.store.integrity import VerificationRecord
from sendense_repository.upkeep_errors import VerificationExists, VerificationNotFound
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()

INTERRUPTED = "VERIFICATION_INTERRUPTED"
"""Why a verification failed whose process ended: starting it again goes on."""

_AT_ONCE = 2
"""Verifications that read at the same time; others wait for their turn."""

_LEASE_SECONDS = 900
_WATCH_SECONDS = 0.5
_DUE = 100


@dataclass(slots=True)
class _Running:
    """A verification that this process does."""

    record: VerificationRecord
    cancel: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None
    done_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, length: int) -> None:
        """Counts bytes that were read; called in reading threads."""
        with self.lock:
            self.done_bytes += length

    def now(self) -> VerificationRecord:
        """Returns the record as it is now."""
        return replace(self.record, done_bytes=min(self.done_bytes, self.record.total_bytes))


class VerificationDesk:
    """Runs verifications.

    Args:
        catalogue: Where outcomes are kept.
        points: Finds and leases points.
        view: Tells what is known of them.
        usual_rate: Bytes a second that a verification may read which names no rate; 0 for no limit.
    """

    def __init__(self, catalogue: Catalogue, points: PointDesk, view: IntegrityView, usual_rate: int = 0) -> None:
        self._catalogue = catalogue
        self._points = points
        self._view = view
        self._usual_rate = usual_rate
        self._running: dict[str, _Running] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._starting = asyncio.Lock()

    async def recover(self) -> None:
        """Says of verifications that the last process did not end that they were interrupted; called at the start."""
        await self._catalogue.verifications.end_running(INTERRUPTED, "the service ended; start it again to go on")

    async def start(
        self, verification_id: str, backup_id: str, *, bytes_per_second: int, max_age_seconds: int
    ) -> VerificationRecord:
        """Starts a verification, joins the one that runs, or returns how it ended; a failed one begins again.

        Raises:
            PointNotFound: There is no such point.
            VerificationExists: The id was used for another point.
        """
        async with self._starting:
            known = await self._catalogue.verifications.find(verification_id)
            if known is not None and known.backup_id != backup_id:
                raise VerificationExists(verification_id, known.backup_id)
            if known is not None and known.state != "failed":
                return self._now(known)
            placed = await self._points.get(backup_id)
            chains = await self._chains(placed)
            record = VerificationRecord(
                verification_id=verification_id,
                backup_id=backup_id,
                state="running",
                bytes_per_second=max(0, bytes_per_second) or self._usual_rate,
                max_age_seconds=max(0, max_age_seconds),
                total_bytes=sum(chain[0].area_bytes for chain in chains),
                done_bytes=0,
                error_reason="",
                error_message="",
                started_at=known.started_at if known is not None else utc_now(),
                ended_at=None,
            )
            await self._catalogue.verifications.put(record)
            running = self._running[verification_id] = _Running(record)
            running.task = asyncio.create_task(self._run(running, placed, chains))
        log.info("verification started", verification_id=verification_id, backup_id=backup_id)
        return record

    async def get(self, verification_id: str) -> VerificationRecord:
        """Returns a verification as it is now.

        Raises:
            VerificationNotFound: There is none.
        """
        record = await self._catalogue.verifications.find(verification_id)
        if record is None:
            raise VerificationNotFound(verification_id)
        return self._now(record)

    async def watch(self, verification_id: str) -> AsyncIterator[VerificationRecord]:
        """Yields a verification at once, at each change, and as it ended."""
        told: VerificationRecord | None = None
        while told is None or told.state == "running":
            record = await self.get(verification_id)
            if record != told:
                yield record
            told = record
            if record.state == "running":
                await asyncio.sleep(_WATCH_SECONDS)

    async def cancel(self, verification_id: str) -> VerificationRecord:
        """Stops a verification at its next request and returns it; no error when it has ended."""
        running = self._running.get(verification_id)
        if running is not None:
            running.cancel.set()
            if running.task is not None:
                await asyncio.wait([running.task])
        return await self.get(verification_id)

    async def due(self, repository_id: str, checked_before: datetime | None, limit: int) -> list[str]:
        """Returns the points to verify next: never checked ones, newest first, then those checked longest ago."""
        never: list[tuple[datetime, str]] = []
        ago: list[tuple[datetime, str]] = []
        for vm_uuid in await self._catalogue.points.vms(repository_id):
            points = await self._catalogue.points.of_vm(repository_id, vm_uuid)
            found = await self._view.of_points(points)
            for point in points:
                checked_at = found[point.backup_id].checked_at
                if checked_at is None:
                    never.append((point.committed_at, point.backup_id))
                elif checked_before is None or checked_at < checked_before:
                    ago.append((checked_at, point.backup_id))
        ordered = [*sorted(never, reverse=True), *sorted(ago)]
        return [backup_id for _, backup_id in ordered[: limit or _DUE]]

    async def close(self) -> None:
        """Stops what runs; it is interrupted, and goes on when it is started again."""
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for running in self._running.values():
            running.cancel.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _now(self, record: VerificationRecord) -> VerificationRecord:
        running = self._running.get(record.verification_id)
        return running.now() if running is not None else record

    async def _chains(self, placed: PlacedPoint) -> list[list[LayerRecord]]:
        """Returns every layer that a point needs with those below it, the fulls first."""
        point = placed.point
        known = {
            layer.layer_id: layer for layer in await self._catalogue.layers.of_vm(point.repository_id, point.vm_uuid)
        }
        chains: dict[str, list[LayerRecord]] = {}
        for layer in placed.layers:
            chain = ancestry(layer, known)
            chains |= {each.layer_id: chain[position:] for position, each in enumerate(chain)}
        return sorted(chains.values(), key=len)

    async def _run(self, running: _Running, placed: PlacedPoint, chains: list[list[LayerRecord]]) -> None:
        ended = running.record
        try:
            async with self._turn:
                await self._read(running, placed, chains)
            ended = replace(running.now(), state="done")
        except ReadingCancelled:
            ended = replace(running.now(), state="cancelled")
        except asyncio.CancelledError:
            ended = replace(
                running.now(), state="failed", error_reason=INTERRUPTED, error_message="the service was stopped"
            )
            raise
        except SendenseError as error:
            ended = replace(running.now(), state="failed", error_reason=error.reason, error_message=error.message)
        except (QemuError, BlockIOError, OSError) as error:
            log.exception("verification failed", backup_id=placed.point.backup_id)
            ended = replace(running.now(), state="failed", error_reason="VERIFICATION_FAILED", error_message=str(error))
        finally:
            if ended.state == "running":
                ended = replace(
                    running.now(), state="failed", error_reason="INTERNAL", error_message="see the service's log"
                )
            await asyncio.shield(self._end(running, replace(ended, ended_at=utc_now())))

    async def _end(self, running: _Running, ended: VerificationRecord) -> None:
        await self._points.release(ended.backup_id, _holder(ended))
        if ended.state == "done":
            ended = replace(ended, done_bytes=ended.total_bytes)
        await self._catalogue.verifications.put(ended)
        del self._running[running.record.verification_id]
        log.info("verification ended", verification_id=ended.verification_id, state=ended.state)

    async def _read(self, running: _Running, placed: PlacedPoint, chains: list[list[LayerRecord]]) -> None:
        record = running.record
        since = record.started_at - timedelta(seconds=record.max_age_seconds)
        pace = Pace(record.bytes_per_second)
        keeper = asyncio.create_task(self._keep_lease(record))
        try:
            await self._points.lease(record.backup_id, _holder(record), _LEASE_SECONDS)
            async with open_read_back() as session:
                for chain in chains:
                    await self._read_layer(running, session, placed, chain, since, pace)
            damages = await asyncio.to_thread(check_point_file, placed.repository.path, placed.point)
            await self._keep(placed, placed.point.backup_id, placed.point.digest, damages)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _read_layer(
        self,
        running: _Running,
        session: ReadBack,
        placed: PlacedPoint,
        chain: list[LayerRecord],
        since: datetime,
        pace: Pace,
    ) -> None:
        if running.cancel.is_set():
            raise ReadingCancelled
        layer = chain[0]
        before = running.done_bytes
        known = await self._catalogue.checks.of([layer.layer_id])
        if not any(check.digest == layer.digest and check.checked_at >= since and not check.damages for check in known):
            check = LayerCheck(session, placed.repository.path, chain, pace, running.cancel, running.add)
            damages = await check.run()
            # A layer that was merged in the meantime is another one now, and stays unverified.
            now = await self._catalogue.layers.find(layer.layer_id)
            if now is None or now.digest != layer.digest:
                raise PointNotFound(f"{placed.point.backup_id} as it was: its layer {layer.name} was replaced")
            await self._keep(placed, layer.layer_id, layer.digest, damages)
        # Zeroes are not read, and count at the end of their layer.
        running.done_bytes = before + layer.area_bytes

    async def _keep(self, placed: PlacedPoint, subject_id: str, digest: str, damages: list[Damage]) -> None:
        repository_id = placed.repository.repository_id
        await self._catalogue.checks.put(Check(subject_id, repository_id, digest, utc_now(), damages))
        if damages:
            log.error(
                "damage found",
                backup_id=placed.point.backup_id,
                subject_id=subject_id,
                count=len(damages),
                first=str(damages[0]),
            )

    async def _keep_lease(self, record: VerificationRecord) -> None:
        while True:
            await asyncio.sleep(_LEASE_SECONDS / 3)
            await self._points.lease(record.backup_id, _holder(record), _LEASE_SECONDS)


def _holder(record: VerificationRecord) -> str:
    return f"verification {record.verification_id}"[:191]
