"""Looks for expired leases from time to time, for the life of the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from sendense_exports.catalogue import Catalogue
from sendense_rpc.errors import SendenseError

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def sweeping(catalogue: Catalogue, seconds: float) -> AsyncIterator[None]:
    """Sweeps in the background for the time of the block.

    Args:
        catalogue: Whose exports.
        seconds: Pause between two rounds.
    """
    task = asyncio.create_task(_run(catalogue, seconds))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _run(catalogue: Catalogue, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await catalogue.sweep()
        except (SendenseError, OSError) as error:
            log.warning("expired exports could not be swept; the next round tries again", error=str(error))
        except Exception:  # a broken round must not end the sweeping
            log.exception("a round of the sweeper failed")
