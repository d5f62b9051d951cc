"""Follows what another service does for an operation: starts or joins it, watches it, says how it ended.

What always holds: losing sight of it is no failure. When the watch breaks off, or the service forgot it because it
started anew, it is started or joined again under the same id; only its own end, or silence for too long, ends the step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from sendense_backup.clients.maintenance import FAILED, WAITING, Progressing
from sendense_backup.errors import OperationStalled
from sendense_backup.progress import RateMeter
from sendense_backup.workflows.operation import OperationWork
from sendense_backup.workflows.runtime import is_passing
from sendense_rpc.errors import Kind, SendenseError

FORGOTTEN = ("OPERATION_NOT_FOUND", "VERIFICATION_NOT_FOUND", "RETENTION_NOT_FOUND")
PAUSE_SECONDS = 0.5

Start = Callable[[], Awaitable[Progressing]]
Watch = Callable[[], AsyncIterator[Progressing]]
Seen = Callable[[Progressing], Awaitable[None]]


async def follow(work: OperationWork, step: str, start: Start, watch: Watch, seen: Seen | None = None) -> Progressing:
    """Starts or joins something and returns it as it ended well.

    Args:
        work: The execution.
        step: For the log.
        start: Starts or joins it; idempotent.
        watch: Watches it.
        seen: Told each state; an error of it ends the step.

    Raises:
        SendenseError: It failed, with the reason that its owner gave.
        OperationStalled: Nothing was heard of it for the setting `operation_stall_seconds`.
    """
    meter = RateMeter()
    told = ""
    heard = time.monotonic()
    while True:
        state = await work.runtime.patiently(start)
        try:
            async with aclosing(_heard(work, state, watch)) as states:
                async for state in states:  # the last one is what the step ends with
                    heard = time.monotonic()
                    if seen is not None:
                        await seen(state)
                    rate = meter.add(heard, state.done_bytes)
                    await work.catalogue.operations.progress(
                        work.job_id, work.attempt, state.done_bytes, state.total_bytes, rate
                    )
                    if state.state == WAITING and told != (now := ", ".join(state.holders)):
                        told = now
                        await work.log("info", step, f"waits for {told}", holders=list(state.holders))
                    if state.ended:
                        return _ended(state)
        except TimeoutError as error:
            raise OperationStalled(work.job_id, work.runtime.settings.operation_stall_seconds) from error
        except SendenseError as error:
            if not is_passing(error) and error.reason not in FORGOTTEN:
                raise
            if time.monotonic() - heard > work.runtime.settings.operation_stall_seconds:
                raise
            await work.log("warning", step, f"lost sight of it, joins it again: {error.message}", reason=error.reason)
        await asyncio.sleep(PAUSE_SECONDS)


async def _heard(work: OperationWork, first: Progressing, watch: Watch) -> AsyncGenerator[Progressing, None]:
    """Yields the first state and then what the watch says; TimeoutError when it is silent for too long."""
    yield first
    if first.ended:
        return
    states = watch()
    async with aclosing(states):  # type: ignore[type-var]
        while True:
            async with asyncio.timeout(work.runtime.settings.operation_stall_seconds):
                try:
                    state = await anext(states)
                except StopAsyncIteration:
                    return
            yield state


def _ended(state: Progressing) -> Progressing:
    if state.state == FAILED:
        raise SendenseError(
            state.message or "it failed", kind=Kind.ABORTED, reason=state.reason or "INTERNAL", help=state.help
        )
    return state
