"""The step that audits change tracking: blocks that the backup did not copy must be what the chain gives.

Change tracking has left changes out before (cbt-facts 8), and nothing else would ever show it: the layers are sound,
the restore points are wrong. So while the snapshot is open some of what was not copied is read from it and compared:
blocks by chance, and one slice of the disk, which moves on with each restore point until all of it was compared. After
a full these are the blocks that were said to be unallocated. A difference fails the job, marks every restore point that
may be wrong, and the next backup of the disk is full.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from sendense_backup.clients.repository import Sample
from sendense_backup.config import BackupSettings
from sendense_backup.errors import Cancelled, CaptureStalled, ChangeTrackingWrong, LostSnapshot
from sendense_backup.model import JobDisk
from sendense_backup.store import leases
from sendense_backup.workflows.durable import Outcome
from sendense_backup.workflows.runtime import Work

BLOCKS_AT_ONCE = 100_000
"""Blocks that one reader is started for; with clusters of 64 KiB 6 GiB of the disk."""
MOST_DIFFERENCES = 10_000
PAGE_SECONDS = 300.0
"""How long the agent may take for a page of digests; it gives a stalled reader up sooner."""


async def audit(work: Work, position: int) -> Outcome:
    """Compares a sample of what was not copied; does nothing where it is switched off."""
    settings = work.runtime.settings
    if not (settings.audit_blocks or settings.audit_share or settings.audit_runs):
        return {}
    row = await work.catalogue.running.disk(work.backup_id, position)
    compared = compared_bytes = 0
    differing: list[tuple[int, int]] = []
    async for batch in _batches(work, row):
        found = await work.runtime.patiently(lambda batch=batch: _differing(work, row, batch))  # type: ignore[misc]
        differing += found[: MOST_DIFFERENCES - len(differing)]
        compared += len(batch)
        compared_bytes += sum(sample.length for sample in batch)
    if differing:
        await _report(work, row, differing)
    await work.log(
        "info",
        "audit",
        f"{row.label}: {compared} blocks that were not copied are as the chain gives them",
        blocks=compared,
        bytes=compared_bytes,
        position=position,
    )
    return {}


def slices_of(settings: BackupSettings, capacity_bytes: int) -> int:
    """Returns how many restore points it takes until all of a disk was compared: one slice is compared with each."""
    if not settings.audit_runs:
        return 0
    return max(settings.audit_runs, -(-capacity_bytes // settings.audit_slice_bytes))


async def _batches(work: Work, row: JobDisk) -> AsyncIterator[list[Sample]]:
    settings = work.runtime.settings
    # Known to nobody before, and the same when the step is repeated.
    seed = int.from_bytes(hashlib.sha256(row.layer_id.encode()).digest()[:7], "big")
    batch: list[Sample] = []
    pages = work.runtime.repository.sample_uncopied(
        row.layer_id,
        blocks=settings.audit_blocks,
        share=settings.audit_share,
        slices=slices_of(settings, row.capacity_bytes),
        seed=seed,
    )
    async with aclosing(pages):  # type: ignore[type-var]
        async for page in pages:
            batch += page
            if len(batch) >= BLOCKS_AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch


async def _differing(work: Work, row: JobDisk, batch: Sequence[Sample]) -> list[tuple[int, int]]:
    """Returns the blocks, as (offset, length), that are not in the snapshot what the chain gives."""
    held = await work.catalogue.leases.held(work.backup_id, leases.SNAPSHOT)
    if not held:
        raise LostSnapshot(work.backup_id)
    job = await work.job()
    agent = await work.agent()
    digests: list[bytes] = []
    pages = agent.digests(
        job.ref, work.holder, held[0].resource_id, row.device_key, [(each.offset, each.length) for each in batch]
    )
    async with aclosing(pages):  # type: ignore[type-var]
        while True:
            try:
                async with asyncio.timeout(PAGE_SECONDS):
                    page = await anext(pages, None)
            except TimeoutError as error:
                raise CaptureStalled(PAGE_SECONDS) from error
            if page is None:
                break
            digests += page
            if (await work.job()).cancel_requested:
                raise Cancelled(work.backup_id)
    return [
        (sample.offset, sample.length) for sample, digest in zip(batch, digests, strict=True) if sample.digest != digest
    ]


async def _report(work: Work, row: JobDisk, differing: Sequence[tuple[int, int]]) -> None:
    """Marks the restore points that may be wrong, and fails the job."""
    number = f"{len(differing)} blocks" if len(differing) < MOST_DIFFERENCES else f"{MOST_DIFFERENCES} blocks or more"
    finding = (
        f"{work.backup_id} found {number} of {row.label} changed without change tracking having told, "
        f"the first at {differing[0][0]}"
    )
    suspects = await work.runtime.patiently(
        lambda: work.runtime.repository.mark_suspect(row.layer_id, work.holder, differing, finding)
    )
    raise ChangeTrackingWrong(row.label, len(differing), differing[0][0], suspects)
