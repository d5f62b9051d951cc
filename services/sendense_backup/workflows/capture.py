"""The steps that copy a disk: serve its layer, let the agent copy into it, stop serving.

What always holds: nobody writes through an export of an earlier attempt. A capture that begins again (after a crash, a
cut link, the end of the serving daemon) first removes the old export, which cuts off whoever still writes to it, makes
one of a new name, and copies only what the journal lacks. The journal only grows by batches that were flushed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta

from sendense_backup.clients.agents import Batch, CaptureOrder, Done, Progress
from sendense_backup.errors import Cancelled, CaptureEndedEarly, CaptureStalled, LostSnapshot
from sendense_backup.model import FULL, JobDisk
from sendense_backup.progress import RateMeter
from sendense_backup.store import leases
from sendense_backup.workflows.durable import Outcome
from sendense_backup.workflows.layers import join_layer
from sendense_backup.workflows.runtime import Work, is_passing
from sendense_db.columns import utc_now
from sendense_naming.identifiers import export_name
from sendense_rpc.errors import SendenseError

PROGRESS_SECONDS = 0.5
"""Progress is written at most this often."""
CANCEL_SECONDS = 1.0
"""A silent capture is asked this often whether it was cancelled."""


async def open_export(work: Work, position: int) -> Outcome:
    """Serves the disk's layer to the agent, unless there is nothing to copy."""
    row = await work.catalogue.running.disk(work.backup_id, position)
    if row.total_bytes:
        await _fresh_export(work, row)
    return {}


async def capture(work: Work, position: int) -> Outcome:
    """Lets the agent copy what the journal lacks, and goes on when the copy breaks off for a passing reason."""
    settings = work.runtime.settings
    row = await work.catalogue.running.disk(work.backup_id, position)
    if not row.total_bytes:
        await work.log("info", "capture", f"{row.label}: nothing to copy", position=position)
        return {}
    held = await work.catalogue.leases.held(work.backup_id, leases.EXPORT)
    name = held[0].resource if held and held[0].attempt == work.attempt else ""
    meter = RateMeter()
    failures = 0
    while True:
        name = name or await _fresh_export(work, row)
        before = (await _journaled(work, row)).bytes
        try:
            await _copy(work, row, name, meter)
        except SendenseError as error:
            if not is_passing(error) or error.metadata.get("poisons") == "true":
                raise  # for good, or the layer may have lost what was acknowledged
            row = await work.catalogue.running.disk(work.backup_id, position)
            failures = 1 if (await _journaled(work, row)).bytes > before else failures + 1
            if failures > settings.capture_resumes:
                raise
            await work.log(
                "warning",
                "capture",
                f"{row.label}: the copy broke off and is resumed: {error.message}",
                reason=error.reason,
                position=position,
            )
            await asyncio.sleep(settings.resume_pause_seconds)
            name = ""
        else:
            return {}


async def close_export(work: Work, position: int) -> Outcome:
    """Stops serving the disk's layer."""
    del position  # one disk is served at a time
    await _stop_serving(work)
    return {}


async def _stop_serving(work: Work) -> None:
    for lease in await work.catalogue.leases.held(work.backup_id, leases.EXPORT):
        name = lease.resource
        wait = 10 if lease.attempt == work.attempt else 1
        await work.runtime.patiently(
            lambda name=name, wait=wait: work.runtime.exports.stop_serving(name, work.holder, wait_seconds=wait)  # type: ignore[misc]
        )
        await work.catalogue.leases.end(lease)
        await work.log("info", "close", f"export {name} removed", export_name=name)


async def _fresh_export(work: Work, row: JobDisk) -> str:
    """Removes the job's earlier exports and serves the layer under a name that was never used."""
    await _stop_serving(work)
    job = await work.job()
    if row.layer_id and row.journal_sequence:
        # Copied in part before: the repository must refuse older attempts' batches from now on.
        await join_layer(work, row.position)
    moment = utc_now()
    while True:
        name = export_name(job.vm_context_id, row.disk_id, row.backup_type, moment)
        if not await work.catalogue.leases.used(leases.EXPORT, name):
            break
        moment += timedelta(seconds=1)
    await work.catalogue.leases.take(work.backup_id, leases.EXPORT, name, work.attempt)
    await work.runtime.patiently(lambda: work.runtime.exports.serve_layer(name, row.path, work.holder, job.agent_id))
    await work.log("info", "export", f"layer served as {name}", export_name=name, position=row.position)
    return name


@dataclass
class _Journal:
    """How far a layer's journal is.

    Attributes:
        sequence: The last committed batch.
        bytes: What the batches cover.
    """

    sequence: int
    bytes: int


async def _journaled(work: Work, row: JobDisk) -> _Journal:
    """Returns how far the journal is, from what the repository says is left.

    The last batch may have been committed without our knowing (its answer was lost, or we died): before each batch its
    number and what the journal covered are written down, so the bytes that are covered now tell whether it counts.
    """

    async def remaining() -> int:
        return sum(
            [length async for page in work.runtime.repository.remaining_areas(row.layer_id) for _, length in page]
        )

    covered = row.total_bytes - await work.runtime.patiently(remaining)
    committed = covered > row.journal_floor_bytes
    return _Journal(row.journal_sequence if committed else max(0, row.journal_sequence - 1), covered)


@dataclass
class _Copy:
    """One run of the agent's copy."""

    work: Work
    row: JobDisk
    meter: RateMeter
    journal: _Journal
    base_bytes: int
    written_at: float = field(default=0.0)

    async def progressed(self, progress: Progress) -> None:
        """Records progress, and stops the copy when somebody asked for it."""
        now = time.monotonic()
        if now - self.written_at < PROGRESS_SECONDS:
            return
        self.written_at = now
        await self.record(self.base_bytes + progress.done_bytes)

    async def record(self, done_bytes: int) -> None:
        """Writes how far the disk is."""
        rate = self.meter.add(time.monotonic(), done_bytes)
        if await self.work.catalogue.running.progress(
            self.work.backup_id, self.work.attempt, self.row.position, done_bytes, rate
        ):
            raise Cancelled(self.work.backup_id)

    async def flushed(self, batch: Batch) -> None:
        """Commits a batch to the journal."""
        await self.work.set_disk(
            self.row.position, journal_sequence=batch.sequence, journal_floor_bytes=self.journal.bytes
        )
        self.journal.bytes = await self.work.runtime.patiently(
            lambda: self.work.runtime.repository.append_journal(
                self.row.layer_id, self.work.holder, batch.sequence, batch.entries
            )
        )
        self.journal.sequence = batch.sequence


async def _copy(work: Work, row: JobDisk, name: str, meter: RateMeter) -> None:
    job = await work.job()
    held = await work.catalogue.leases.held(work.backup_id, leases.SNAPSHOT)
    if not held:
        raise LostSnapshot(work.backup_id)
    journal = await _journaled(work, await work.catalogue.running.disk(work.backup_id, row.position))
    if journal.bytes >= row.total_bytes:
        return
    copy = _Copy(work, row, meter, journal, base_bytes=journal.bytes)
    await work.log(
        "info",
        "capture",
        f"{row.label}: copying {row.total_bytes - journal.bytes} bytes",
        export_name=name,
        position=row.position,
    )
    order = CaptureOrder(
        ref=job.ref,
        snapshot_moref=held[0].resource_id,
        device_key=row.device_key,
        export_name=name,
        fresh_target=row.backup_type == FULL,
        first_sequence=journal.sequence + 1,
    )
    agent = await work.agent()
    areas = work.runtime.repository.remaining_areas(row.layer_id)
    started = time.monotonic()
    async with aclosing(_events(work, agent.capture(order, work.holder, areas))) as events:  # type: ignore[arg-type]
        async for event in events:
            if isinstance(event, Progress):
                await copy.progressed(event)
            elif isinstance(event, Batch):
                await copy.flushed(event)
            else:
                await copy.record(copy.base_bytes + event.progress.done_bytes)
                await work.log(
                    "info",
                    "capture",
                    f"{row.label}: copied {event.progress.done_bytes} bytes by {event.reader}",
                    reader=event.reader,
                    bytes=event.progress.done_bytes,
                    zero_bytes=event.progress.zero_bytes,
                    seconds=round(time.monotonic() - started, 3),
                    position=row.position,
                )
                return
    raise CaptureEndedEarly


async def _events(
    work: Work, source: AsyncGenerator[Progress | Batch | Done, None]
) -> AsyncGenerator[Progress | Batch | Done, None]:
    """Passes events on; while none comes, looks for a wish to cancel, and gives up when it takes too long."""
    stall = work.runtime.settings.stall_seconds
    async with aclosing(source):
        while True:
            pending = asyncio.ensure_future(anext(source))
            try:
                deadline = time.monotonic() + stall
                while not (await asyncio.wait({pending}, timeout=min(CANCEL_SECONDS, stall)))[0]:
                    if (await work.job()).cancel_requested:
                        raise Cancelled(work.backup_id)
                    if time.monotonic() > deadline:
                        raise CaptureStalled(stall)
            finally:
                if not pending.done():
                    pending.cancel()
                    await asyncio.wait({pending})
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            yield event
